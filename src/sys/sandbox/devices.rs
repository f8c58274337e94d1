//! The nodes of graphics devices and the groups that may open them.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::Gid;

/// Folders and nodes of drivers with a fixed name: DRM on Linux and drm-kmod, AMD's compute node, the one of WSL.
const NAMES: [&str; 4] = ["dri", "drm", "kfd", "dxg"];
/// Nodes of NVIDIA's driver begin with this on both systems.
const NVIDIA: &str = "nvidia";

/// Nodes, and folders of nodes, that exist below `dev`.
pub fn nodes(dev: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = NAMES.iter().map(|n| dev.join(n)).filter(|p| p.exists()).collect();
    let entries = std::fs::read_dir(dev).into_iter().flatten().flatten();
    found.extend(entries.filter(|e| e.file_name().to_string_lossy().starts_with(NVIDIA)).map(|e| e.path()));
    found
}

/// Groups that may read and write those nodes; root's is left out.
pub fn groups(nodes: &[PathBuf]) -> Vec<Gid> {
    let below = |p: &PathBuf| {
        let inside = std::fs::read_dir(p).into_iter().flatten().flatten().map(|e| e.path());
        inside.chain([p.clone()]).collect::<Vec<_>>()
    };
    let mut groups: Vec<u32> = nodes
        .iter()
        .flat_map(below)
        .filter_map(|p| std::fs::metadata(p).ok())
        .filter(|m| m.file_type().is_char_device() && m.mode() & 0o060 == 0o060 && m.gid() != 0)
        .map(|m| m.gid())
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups.into_iter().map(Gid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_those_of_graphics_devices() {
        let dev = std::env::temp_dir().join(format!("gamegend-dev-{}", std::process::id()));
        std::fs::create_dir_all(dev.join("dri")).expect("a temporary directory");
        for name in ["nvidia0", "nvidiactl", "sda", "tty0"] {
            std::fs::write(dev.join(name), "").expect("a temporary file");
        }
        let mut found = nodes(&dev);
        found.sort();
        assert_eq!(found, ["dri", "nvidia0", "nvidiactl"].map(|n| dev.join(n)));
        // Plain files are no devices, whatever their group.
        assert_eq!(groups(&found), []);
        std::fs::remove_dir_all(&dev).expect("ours");
    }
}
