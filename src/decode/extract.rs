//! What a video prompt takes from pictures: RGB in, RGB of the same size out, by the same code that the model's own
//! control pictures are made with.

use super::DecodeError;
use super::clip::Picture;
use crate::model::ModelError;
use crate::model::video_prompt::{self, control_pictures};
use crate::proto::decode::Extraction;

/// Those that need no network of the model, which a decoder does not have: poses do.
const KNOWN: [Extraction; 2] = [Extraction::Canny, Extraction::MotionVectors];

/// Names of the extractions that this program has.
#[cfg(test)]
pub fn known() -> Vec<&'static str> {
    KNOWN.iter().map(|e| e.name()).collect()
}

/// Pictures that one needs before it to be extracted: motion is a difference.
pub fn pictures_before(extraction: Extraction) -> u32 {
    match extraction {
        Extraction::Canny | Extraction::Pose => 0,
        Extraction::MotionVectors => 1,
    }
}

/// Extracts from every picture. Errors: `Unsupported`; `File` for pictures that differ in size.
pub fn all(extraction: Extraction, pictures: Vec<Picture>) -> Result<Vec<Picture>, DecodeError> {
    if !KNOWN.contains(&extraction) {
        return Err(DecodeError::Unsupported(extraction.name()));
    }
    let sizes: Vec<(u32, u32)> = pictures.iter().map(|p| (p.width, p.height)).collect();
    let given = |p: Picture| video_prompt::Picture::new(p.width as usize, p.height as usize, p.rgb);
    let extracted = || -> Result<Vec<video_prompt::Picture>, ModelError> {
        let frames = pictures.into_iter().map(given).collect::<Result<Vec<_>, _>>()?;
        control_pictures(extraction.name(), &frames, None)
    };
    let made = extracted().map_err(|e| DecodeError::File(e.to_string()))?;
    let picture = |((width, height), made): ((u32, u32), video_prompt::Picture)| Picture {
        width,
        height,
        rgb: made.rgb().to_vec(),
    };
    Ok(sizes.into_iter().zip(made).map(picture).collect())
}
