//! The making of a worker's jail as a value: every system call in order, with what undoes it. Pure, so that its order,
//! flags and parameters are tested on every system; `freebsd` carries it out.
//!
//! ```text
//!  folder -> tmpfs (root) -> nullfs, read-only (libraries, drivers, model) -> nullfs (cache) -> devfs with its ruleset
//!         -> look at its nodes -> jail_set(JAIL_CREATE) -> rctl_add_rule                           undone in reverse
//! ```

use std::path::{Path, PathBuf};

use super::spec::{JailSpec, Parameter};
use crate::config::Config;

/// The jail's root holds mount points only.
const ROOT_SIZE: &str = "1m";
/// The ruleset of the base system that hides every node, `devfsrules_hide_all`: for a worker without a device, which
/// then is shown [`SHOWN_WITHOUT_DEVICE`]. (The one for jails, 4, shows `zfs` and `fuse` too.)
pub const RULESET_WITHOUT_DEVICE: u32 = 1;
/// What a worker without a device sees.
pub const SHOWN_WITHOUT_DEVICE: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Nodes that a worker's devfs may show beside a device.
const PLAIN_NODES: [&str; 13] =
    ["null", "zero", "full", "random", "urandom", "crypto", "log", "fd", "stdin", "stdout", "stderr", "ptmx", "pts"];
/// Terminals, which devfsrules_jail shows.
const TERMINALS: [&str; 2] = ["tty", "pty"];
/// Beginnings of names of graphics devices.
const DEVICE_NODES: [&str; 3] = ["dri", "drm", "nvidia"];

/// What a mount may not do (nmount(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    ReadOnly,
    NoSetUserId,
    NoExec,
}

/// The value of a parameter of jail_set(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i32),
    /// The name says it all.
    None,
}

/// Nodes of graphics devices that a worker may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leased {
    /// It works on the processor.
    Nothing,
    /// Those that the ruleset shows.
    All,
    /// `gpu.nodes`, with what they link to; a folder stands for what is in it.
    Only(Vec<PathBuf>),
}

impl Leased {
    /// `resolve` follows the links of a node of the host.
    fn new(config: &Config, ruleset: u32, resolve: &dyn Fn(&Path) -> PathBuf) -> Leased {
        match config.gpu.nodes.as_slice() {
            _ if config.gpu.device == "cpu" || ruleset == RULESET_WITHOUT_DEVICE => Leased::Nothing,
            [] => Leased::All,
            nodes => Leased::Only(nodes.iter().flat_map(|n| [n.clone(), resolve(n)]).collect()),
        }
    }

    /// Whether a path below /dev is one of them, below one or above one.
    fn shows(&self, node: &Path) -> bool {
        let name = node.strip_prefix("/dev").unwrap_or(node).to_string_lossy().into_owned();
        match self {
            Leased::Nothing => false,
            Leased::All => DEVICE_NODES.iter().any(|p| name.starts_with(p)),
            Leased::Only(nodes) => nodes.iter().any(|n| node.starts_with(n) || n.starts_with(node)),
        }
    }
}

/// What the plan asks the host.
pub struct Host<'a> {
    pub exists: &'a dyn Fn(&Path) -> bool,
    /// A path with its links followed, or as it is where that cannot be done.
    pub resolve: &'a dyn Fn(&Path) -> PathBuf,
}

/// One step forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// mkdir(2), for the host's folder that the root is mounted on.
    MakeFolder(PathBuf),
    /// nmount(2) at a folder that is made first if it does not exist.
    Mount { at: PathBuf, options: Vec<(&'static str, String)>, flags: Vec<Flag> },
    /// ioctl(2) `DEVFSIO_RAPPLY`: shows nodes of a devfs whose ruleset hides them.
    Show { at: PathBuf, nodes: Vec<&'static str> },
    /// readdir(3): only such nodes may show.
    CheckNodes { at: PathBuf, device: Leased },
    /// jail_set(2) with `JAIL_CREATE`.
    Create(Vec<(String, Value)>),
    /// rctl_add_rule(2), where the kernel counts resources.
    Limit(String),
}

/// One step back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undo {
    /// rmdir(2).
    RemoveFolder(PathBuf),
    /// unmount(2) with `MNT_FORCE`.
    Unmount(PathBuf),
    /// jail_remove(2), which kills what is inside.
    RemoveJail,
    /// rctl_remove_rule(2): rules outlive the jail that they name.
    RemoveLimits(String),
}

impl Step {
    /// What takes it back.
    pub fn undo(&self, jail: &str) -> Option<Undo> {
        match self {
            Step::MakeFolder(path) => Some(Undo::RemoveFolder(path.clone())),
            Step::Mount { at, .. } => Some(Undo::Unmount(at.clone())),
            Step::Show { .. } | Step::CheckNodes { .. } => None,
            Step::Create(_) => Some(Undo::RemoveJail),
            Step::Limit(_) => Some(Undo::RemoveLimits(format!("jail:{jail}"))),
        }
    }
}

/// A jail that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub name: String,
    /// Its root on the host.
    pub root: PathBuf,
    pub steps: Vec<Step>,
}

/// One daemon has one pid file, so its name names the jail, and its directory holds the root.
pub fn name(config: &Config) -> String {
    let stem = config.state.pid_file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let clean: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("{clean}_worker")
}

/// The host's folder of the jail's root: in the directory of the pid file, which only root writes.
pub fn root(config: &Config) -> PathBuf {
    config.state.pid_file.parent().unwrap_or(Path::new("/var/run")).join(format!("{}-root", name(config)))
}

/// The ruleset in force: one is needed for a device, none for the executor on the processor. `nodes`: the host has
/// graphics devices.
pub fn ruleset(config: &Config, nodes: bool) -> u32 {
    match (config.worker.devfs_ruleset, config.gpu.device.as_str()) {
        (0, "cpu") => RULESET_WITHOUT_DEVICE,
        (0, "auto") if !nodes => RULESET_WITHOUT_DEVICE,
        (given, _) => given,
    }
}

/// The steps for a configuration.
pub fn plan(config: &Config, spec: &JailSpec, ruleset: u32, host: &Host<'_>) -> Plan {
    let (name, root) = (name(config), root(config));
    let mut steps = vec![Step::MakeFolder(root.clone())];
    let mount = |at: PathBuf, options: &[(&'static str, &str)], flags: &[Flag]| Step::Mount {
        at,
        options: options.iter().map(|(key, value)| (*key, value.to_string())).collect(),
        flags: flags.to_vec(),
    };
    let tmpfs = [("fstype", "tmpfs"), ("size", ROOT_SIZE), ("mode", "755")];
    steps.push(mount(root.clone(), &tmpfs, &[Flag::NoSetUserId]));
    for shown in spec.mounts.iter().filter(|m| !m.optional || (host.exists)(&m.path)) {
        let from = shown.path.to_string_lossy().into_owned();
        let flags = if shown.write { Flag::NoExec } else { Flag::ReadOnly };
        let options = [("fstype", "nullfs"), ("target", from.as_str())];
        steps.push(mount(inside(&root, &shown.path), &options, &[flags, Flag::NoSetUserId]));
    }
    let number = ruleset.to_string();
    let devfs = [("fstype", "devfs"), ("from", "devfs"), ("ruleset", number.as_str())];
    let dev = inside(&root, Path::new("/dev"));
    steps.push(mount(dev.clone(), &devfs, &[Flag::NoSetUserId]));
    if ruleset == RULESET_WITHOUT_DEVICE {
        steps.push(Step::Show { at: dev.clone(), nodes: SHOWN_WITHOUT_DEVICE.to_vec() });
    }
    steps.push(Step::CheckNodes { at: dev, device: Leased::new(config, ruleset, host.resolve) });
    steps.push(Step::Create(parameters(&name, &root, spec)));
    steps.extend(spec.limits.iter().map(|(resource, n)| Step::Limit(format!("jail:{name}:{resource}:deny={n}"))));
    Plan { name, root, steps }
}

/// `persist`: the jail exists before anything is in it, and goes with jail_remove(2).
fn parameters(name: &str, root: &Path, spec: &JailSpec) -> Vec<(String, Value)> {
    let text = |key: &str, value: &str| (key.to_string(), Value::Text(value.to_string()));
    let mut all = vec![text("name", name), text("path", &root.to_string_lossy()), text("host.hostname", name)];
    all.push(("persist".to_string(), Value::None));
    all.extend(spec.parameters.iter().map(|(key, value)| {
        let value = match (value, value.number()) {
            (Parameter::Flag(_), _) | (_, None) => Value::None,
            (_, Some(number)) => Value::Number(number),
        };
        (key.clone(), value)
    }));
    all
}

/// The mount point of an absolute path below the root.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Nodes of a devfs that a worker must not see. `names`: everything that shows, folders too, as paths below its root.
pub fn forbidden_nodes(names: &[String], device: &Leased) -> Vec<String> {
    let allowed = |name: &String| {
        let first = name.split('/').next().unwrap_or(name);
        PLAIN_NODES.contains(&first)
            || TERMINALS.iter().any(|p| first.starts_with(p))
            || device.shows(&Path::new("/dev").join(name))
    };
    names.iter().filter(|n| !allowed(n)).cloned().collect()
}

/// What the kernel says about a parameter that it does not know, in words for an operator: `errmsg` of jail_set(2).
pub fn explain(message: &str) -> String {
    match message.strip_prefix("unknown parameter: ") {
        Some(parameter) => format!(
            "this kernel does not know the jail parameter {parameter}, which jails/worker.toml asks for; FreeBSD 14.0 \
             or newer is needed, with this part of the kernel (modules: jail(8), sysvipc(4))"
        ),
        None => message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine without tables of Mesa, where nodes of `dri` are links into `drm`.
    const HOST: Host<'_> = Host {
        exists: &|path| !path.ends_with("drirc.d"),
        resolve: &|path| if path.ends_with("renderD128") { "/dev/drm/128".into() } else { path.into() },
    };

    fn made() -> Plan {
        let mut config = Config::default();
        config.model.path = "/usr/local/share/gamegend/models/gamegen-x-mini".into();
        config.limits.memory_mib = 2048;
        config.limits.cpu_percent = 150;
        let spec = JailSpec::worker(&config);
        plan(&config, &spec, 8420, &HOST)
    }

    /// Where, with which flags and options.
    type Mounted<'a> = (&'a Path, &'a [Flag], Vec<(&'a str, &'a str)>);

    fn mounts(plan: &Plan) -> Vec<Mounted<'_>> {
        plan.steps
            .iter()
            .filter_map(|s| match s {
                Step::Mount { at, options, flags } => {
                    Some((at.as_path(), &flags[..], options.iter().map(|(k, v)| (*k, v.as_str())).collect()))
                }
                _ => None,
            })
            .collect()
    }

    /// jail_set(2) wants an existing path; nmount(2) a folder; jail(8) that devfs hides everything before anybody is
    /// inside; rctl(8) a jail that exists.
    #[test]
    fn steps_are_in_the_order_that_the_kernel_needs() {
        let plan = made();
        let at = |wanted: &dyn Fn(&Step) -> bool| plan.steps.iter().position(wanted).expect("it is in the plan");
        let folder = at(&|s| matches!(s, Step::MakeFolder(_)));
        let root = at(&|s| matches!(s, Step::Mount { options, .. } if options[0].1 == "tmpfs"));
        let first = at(&|s| matches!(s, Step::Mount { options, .. } if options[0].1 == "nullfs"));
        let devfs = at(&|s| matches!(s, Step::Mount { options, .. } if options[0].1 == "devfs"));
        let checked = at(&|s| matches!(s, Step::CheckNodes { .. }));
        let created = at(&|s| matches!(s, Step::Create(_)));
        let limited = at(&|s| matches!(s, Step::Limit(_)));
        let order = [folder, root, first, devfs, checked, created, limited];
        assert!(order.is_sorted() && order[0] == 0, "{order:?}");
        assert!(plan.steps[limited..].iter().all(|s| matches!(s, Step::Limit(_))), "limits come last");
    }

    /// Nodes of the plain kind only, and in their order: hidden before they are shown, and looked at last.
    #[test]
    fn without_a_device_everything_is_hidden_but_five_nodes() {
        let mut config = Config::default();
        config.gpu.device = "cpu".to_string();
        let number = ruleset(&config, true);
        let plan = plan(&config, &JailSpec::worker(&config), number, &HOST);
        let devfs = plan.steps.iter().position(|s| matches!(s, Step::Mount { at, .. } if at.ends_with("dev")));
        let [mounted, shown, checked] = &plan.steps[devfs.expect("devfs is mounted")..][..3] else {
            panic!("two steps follow it");
        };
        assert!(matches!(mounted, Step::Mount { options, .. } if options.contains(&("ruleset", "1".to_string()))));
        let Step::Show { at, nodes } = shown else { panic!("{shown:?}") };
        assert_eq!((at, nodes.as_slice()), (&plan.root.join("dev"), &SHOWN_WITHOUT_DEVICE[..]));
        assert_eq!(checked, &Step::CheckNodes { at: at.clone(), device: Leased::Nothing });
        assert!(!made().steps.iter().any(|s| matches!(s, Step::Show { .. })), "a ruleset for a device says it all");
    }

    #[test]
    fn mounts_can_do_no_more_than_they_must() {
        let plan = made();
        let mounts = mounts(&plan);
        assert!(mounts.iter().all(|(_, flags, _)| flags.contains(&Flag::NoSetUserId)));
        assert!(mounts.iter().all(|(at, _, _)| at.starts_with(&plan.root)));
        let writable: Vec<&Path> =
            mounts[1..].iter().filter(|(_, f, _)| !f.contains(&Flag::ReadOnly)).map(|(at, _, _)| *at).collect();
        let inside = |path: &str| plan.root.join(path);
        assert_eq!(writable, [inside("var/db/gamegend/cache"), inside("dev")]);
        for (at, flags, options) in &mounts {
            if options[0].1 == "nullfs" {
                let target = options.iter().find(|(k, _)| *k == "target").expect("nullfs(5) has a target").1;
                assert_eq!(*at, plan.root.join(target.trim_start_matches('/')), "the same path inside");
                assert!(flags.contains(&Flag::ReadOnly) != flags.contains(&Flag::NoExec));
            }
        }
        assert!(!mounts.iter().any(|(at, _, _)| at.ends_with("drirc.d")), "what the host lacks is left out");
        let devfs = mounts.last().expect("there are mounts");
        assert!(devfs.2.contains(&("ruleset", "8420")), "{devfs:?}");
    }

    #[test]
    fn the_jail_is_closed_by_its_parameters() {
        let plan = made();
        let Some(Step::Create(parameters)) = plan.steps.iter().find(|s| matches!(s, Step::Create(_))) else {
            panic!("a jail is made");
        };
        let value = |key: &str| &parameters.iter().find(|(k, _)| k == key).unwrap_or_else(|| panic!("{key}")).1;
        assert_eq!(value("name"), &Value::Text("gamegend_worker".to_string()));
        assert_eq!(value("path"), &Value::Text("/var/run/gamegend/gamegend_worker-root".to_string()));
        assert_eq!(value("persist"), &Value::None);
        for (key, number) in [("children.max", 0), ("enforce_statfs", 2), ("securelevel", 3), ("ip4", 0), ("ip6", 0)] {
            assert_eq!(value(key), &Value::Number(number), "{key}");
        }
        for key in ["sysvshm", "sysvsem", "sysvmsg"] {
            assert_eq!(value(key), &Value::Number(0), "{key}");
        }
        for key in ["allow.nomount", "allow.noraw_sockets", "allow.nochflags", "allow.nosocket_af"] {
            assert_eq!(value(key), &Value::None, "{key}");
        }
        let names: std::collections::BTreeSet<&String> = parameters.iter().map(|(k, _)| k).collect();
        assert_eq!(names.len(), parameters.len(), "jail_set(2) refuses a parameter that is there twice");
        assert!(!names.iter().any(|k| k.starts_with("allow.") && !k.starts_with("allow.no")), "{names:?}");
    }

    #[test]
    fn limits_are_rules_of_rctl() {
        let rules: Vec<String> = made()
            .steps
            .into_iter()
            .filter_map(|s| match s {
                Step::Limit(rule) => Some(rule),
                _ => None,
            })
            .collect();
        let expected = [
            "jail:gamegend_worker:maxproc:deny=1",
            "jail:gamegend_worker:memoryuse:deny=2147483648",
            "jail:gamegend_worker:nthr:deny=1024",
            "jail:gamegend_worker:openfiles:deny=4096",
            "jail:gamegend_worker:pcpu:deny=150",
        ];
        assert_eq!(rules, expected);
    }

    /// Whatever step fails, what was done before it is undone backwards and nothing else is.
    #[test]
    fn every_step_is_undone_in_reverse() {
        let plan = made();
        let undone: Vec<Undo> = plan.steps.iter().rev().filter_map(|s| s.undo(&plan.name)).collect();
        assert!(matches!(undone.first(), Some(Undo::RemoveLimits(f)) if f == "jail:gamegend_worker"));
        assert_eq!(undone.last(), Some(&Undo::RemoveFolder(plan.root.clone())));
        let jail = undone.iter().position(|u| *u == Undo::RemoveJail).expect("it is removed");
        let first_unmount = undone.iter().position(|u| matches!(u, Undo::Unmount(_))).expect("there are mounts");
        assert!(jail < first_unmount, "processes go before the mounts that they use");
        let unmounts: Vec<&Undo> = undone.iter().filter(|u| matches!(u, Undo::Unmount(_))).collect();
        assert_eq!(unmounts.last(), Some(&&Undo::Unmount(plan.root.clone())), "the root goes after what is in it");
        let mounted = plan.steps.iter().filter(|s| matches!(s, Step::Mount { .. })).count();
        assert_eq!(unmounts.len(), mounted, "each mount once");
    }

    #[test]
    fn a_ruleset_is_needed_for_a_device_only() {
        let mut config = Config::default();
        assert_eq!((ruleset(&config, true), ruleset(&config, false)), (0, RULESET_WITHOUT_DEVICE));
        config.gpu.device = "cpu".to_string();
        assert_eq!(ruleset(&config, true), RULESET_WITHOUT_DEVICE);
        config.worker.devfs_ruleset = 8420;
        assert_eq!(ruleset(&config, false), 8420);
    }

    #[test]
    fn nodes_of_the_host_are_found_out() {
        let names = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        let none = |shown: &str, device: &Leased| forbidden_nodes(&names(shown), device);
        assert_eq!(none("null zero random urandom log fd fd/0 pts pts/1 ttyu0 ptmx", &Leased::Nothing), names(""));
        assert_eq!(none("null ada0 mem dri kmem", &Leased::Nothing), names("ada0 mem dri kmem"));
        let shown = "null dri dri/renderD128 drm drm/128 dri/renderD129 drm/129 nvidia0 nvidiactl pci";
        assert_eq!(none(shown, &Leased::All), names("pci"));
        let mut config = Config::default();
        config.gpu.device = "vulkan:0".to_string();
        config.gpu.nodes = vec!["/dev/dri/renderD128".into()];
        let one = Leased::new(&config, 8420, HOST.resolve);
        assert_eq!(none(shown, &one), names("dri/renderD129 drm/129 nvidia0 nvidiactl pci"), "one device of two");
        config.gpu.nodes = vec!["/dev/dri".into(), "/dev/drm".into()];
        assert_eq!(none(shown, &Leased::new(&config, 8420, HOST.resolve)), names("nvidia0 nvidiactl pci"));
        config.gpu.device = "cpu".to_string();
        assert_eq!(Leased::new(&config, 8420, HOST.resolve), Leased::Nothing, "a lease is for a device");
    }

    #[test]
    fn an_unknown_parameter_is_named() {
        let text = explain("unknown parameter: allow.nosettime");
        assert!(text.contains("allow.nosettime") && text.contains("14.0"), "{text}");
        assert_eq!(explain("jail \"x\" already exists"), "jail \"x\" already exists");
    }
}
