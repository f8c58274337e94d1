//! What the api asks of a decoder, and what it answers: one job a process.
//!
//! A file of an upload is one of [`MEDIA`]; a job comes with all files of the upload in one descriptor. What a decoder
//! needs of the model comes from the parent, as a [`JudgeFiles`] on its standard input.

use serde::{Deserialize, Serialize};

/// A kind of file that can be uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Media {
    /// H.264 in MP4.
    Mp4,
    Png,
    Jpeg,
}

/// Every kind with its media type and how its files begin, from byte `.2` on.
pub const MEDIA: [(Media, &str, usize, &[u8]); 3] = [
    (Media::Mp4, "video/mp4", 4, b"ftyp"),
    (Media::Png, "image/png", 0, b"\x89PNG\r\n\x1a\n"),
    (Media::Jpeg, "image/jpeg", 0, b"\xff\xd8\xff"),
];

impl Media {
    /// The kind of a file that begins with `head`, whatever its name or its sender says.
    pub fn of(head: &[u8]) -> Option<Media> {
        MEDIA.iter().find(|(_, _, at, magic)| head.get(*at..at + magic.len()) == Some(magic)).map(|row| row.0)
    }

    pub fn media_type(self) -> &'static str {
        MEDIA.iter().find(|row| row.0 == self).map_or("application/octet-stream", |row| row.1)
    }
}

/// One file inside the descriptor of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub media: Media,
    /// First byte, and length in bytes.
    pub at: u64,
    pub bytes: u64,
}

/// What is taken from pictures before they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extraction {
    Canny,
    MotionVectors,
    Pose,
}

impl Extraction {
    pub const ALL: [Extraction; 3] = [Extraction::Canny, Extraction::MotionVectors, Extraction::Pose];

    pub fn name(self) -> &'static str {
        match self {
            Extraction::Canny => "canny",
            Extraction::MotionVectors => "motion_vectors",
            Extraction::Pose => "pose",
        }
    }

    pub fn from_name(name: &str) -> Option<Extraction> {
        Self::ALL.into_iter().find(|e| e.name() == name)
    }
}

/// Which pictures of a clip, in pixels and frames a second of the session that they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub width: u32,
    pub height: u32,
    pub fps: u32,
}

/// Names of the files of the network that finds a figure's joints, in a model's folder.
pub const JUDGE_FILES: [&str; 2] = ["judges/pose/config.json", "judges/pose/diffusion_pytorch_model.safetensors"];

/// The files of the network that finds a figure's joints, as the model's folder has them. A decoder opens no file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JudgeFiles {
    pub config: Vec<u8>,
    pub weights: Vec<u8>,
}

/// The first and only message to a decoder. Descriptor: the files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ToDecoder {
    pub build: String,
    pub parts: Vec<Part>,
    pub job: Job,
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Job {
    /// Reads everything once. Answers what it is, with a JPEG of its first picture.
    Probe,
    /// One picture as PNG, as it is in the clip.
    Frame { index: u32 },
    /// One picture as JPEG after an extraction, in the clip's own size.
    Preview { extraction: Option<Extraction>, index: u32 },
    /// At most `count` pictures from the beginning, or from the end if `last`, scaled to `shape`.
    Pictures { extraction: Option<Extraction>, shape: Shape, count: u32, last: bool },
}

/// What the pictures of an upload are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub width: u32,
    pub height: u32,
    pub frames: u32,
    /// 0 for a sequence of pictures.
    pub fps: f64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromDecoder {
    /// Descriptor: a memory object that begins with `bytes` bytes of a picture file.
    Picture { about: About, bytes: u32 },
    /// Descriptor: a block of pictures (`frame::pictures`).
    Pictures { count: u32 },
    /// The files are not what they should be; one sentence for whoever sent them.
    Refused { what: String },
    /// There is no picture with this index; the last one.
    NoPicture { last: u32 },
    /// The extraction needs the network that finds joints, and there is none that can be used.
    NoJudge,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_its_first_bytes_say() {
        assert_eq!(Media::of(b"\x00\x00\x00\x18ftypisom"), Some(Media::Mp4));
        assert_eq!(Media::of(b"\x89PNG\r\n\x1a\n...."), Some(Media::Png));
        assert_eq!(Media::of(b"\xff\xd8\xff\xe0"), Some(Media::Jpeg));
        for other in [&b""[..], b"GIF89a", b"<svg", b"PK\x03\x04", b"\xff\xd8"] {
            assert_eq!(Media::of(other), None);
        }
        assert!(Extraction::ALL.iter().all(|e| Extraction::from_name(e.name()) == Some(*e)));
    }
}
