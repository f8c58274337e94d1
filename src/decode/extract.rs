//! What a video prompt takes from pictures: RGB in, RGB of the same size out.

use super::DecodeError;
use super::canny;
use super::clip::Picture;
use crate::proto::decode::Extraction;

/// A way to turn the pictures of a clip into those that lead a model. It must be the one that the model was trained
/// with.
pub trait Extractor: Sync {
    /// One picture for each that is given, of the same size.
    fn extract(&self, pictures: &[Picture]) -> Vec<Picture>;
}

/// The extractors of this program.
const EXTRACTORS: &[(Extraction, &dyn Extractor)] = &[(Extraction::Canny, &canny::Canny)];

/// Names of the extractions that this program has.
#[cfg(test)]
pub fn known() -> Vec<&'static str> {
    EXTRACTORS.iter().map(|(e, _)| e.name()).collect()
}

/// Pictures that one needs before it to be extracted: motion is a difference.
pub fn pictures_before(extraction: Extraction) -> u32 {
    match extraction {
        Extraction::Canny | Extraction::Pose => 0,
        Extraction::MotionVectors => 1,
    }
}

/// Extracts from every picture. Errors: `Unsupported`.
pub fn all(extraction: Extraction, pictures: Vec<Picture>) -> Result<Vec<Picture>, DecodeError> {
    let found = EXTRACTORS.iter().find(|(e, _)| *e == extraction);
    let (_, extractor) = found.ok_or(DecodeError::Unsupported(extraction.name()))?;
    Ok(extractor.extract(&pictures))
}
