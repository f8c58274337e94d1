//! What a video prompt takes from pictures: RGB in, RGB of the same size out, by the same code that the model's own
//! control pictures are made with.

use std::path::Path;

use super::DecodeError;
use super::clip::Picture;
use super::scale;
use crate::model::ModelError;
use crate::model::judges::{self, Judges, Part, Small};
use crate::model::video_prompt::{self, Joint, control_pictures, pose_picture};
use crate::proto::decode::{Extraction, JudgeFiles};

/// One extraction, ready to work; or none, which leaves pictures as they are.
pub struct Extractor {
    extraction: Option<Extraction>,
    /// For poses only.
    judges: Option<Judges>,
}

impl Extractor {
    /// Prepares an extraction. Errors: `NoJudge` if poses are wanted and `judge` is not there, `Judge` if it cannot be
    /// used.
    pub fn of(extraction: Option<Extraction>, judge: Option<&JudgeFiles>) -> Result<Extractor, DecodeError> {
        let judges = match extraction {
            Some(Extraction::Pose) => Some(load(judge.ok_or(DecodeError::NoJudge)?).map_err(DecodeError::Judge)?),
            _ => None,
        };
        Ok(Extractor { extraction, judges })
    }

    /// Pictures that one needs before it to be extracted: motion is a difference.
    pub fn pictures_before(&self) -> u32 {
        match self.extraction {
            Some(Extraction::MotionVectors) => 1,
            Some(Extraction::Canny | Extraction::Pose) | None => 0,
        }
    }

    /// Extracts from every picture. Errors: `File` for pictures that differ in size.
    pub fn all(&mut self, pictures: Vec<Picture>) -> Result<Vec<Picture>, DecodeError> {
        let Some(extraction) = self.extraction else { return Ok(pictures) };
        if let Some(judges) = &mut self.judges {
            let poses = pictures.iter().map(|picture| pose(judges, picture));
            return poses.collect::<Result<_, _>>().map_err(DecodeError::Judge);
        }
        let made = || -> Result<Vec<video_prompt::Picture>, ModelError> {
            let frames = pictures.iter().map(frame).collect::<Result<Vec<_>, _>>()?;
            control_pictures(extraction.name(), &frames, None)
        };
        let made = made().map_err(|e| DecodeError::File(e.to_string()))?;
        Ok(made.iter().map(picture).collect())
    }
}

fn load(files: &JudgeFiles) -> Result<Judges, ModelError> {
    Judges::from_bytes(Path::new(judges::FOLDER), Part::Pose, &files.config, files.weights.clone())
}

/// The pose of the figure in a picture of any size. The judge looks at multiples of its own size only; another picture
/// is widened and scaled for it, and its joints are put back to where they are in the picture.
fn pose(judges: &mut Judges, whole: &Picture) -> Result<Picture, ModelError> {
    let (left, wide) = widened(whole);
    let wide = wide.as_ref().unwrap_or(whole);
    let (width, height) = Small::nearest(wide.width, wide.height);
    let seen = scale::cover(wide, width, height);
    let cut = scale::Cut::of(wide, width, height);
    let back = |j: Joint| Joint { x: cut.back_x(j.x) - left as f32, y: cut.back_y(j.y), seen: j.seen };
    let joints: Vec<Joint> = judges.figure(&frame(&seen)?)?.into_iter().map(back).collect();
    Ok(picture(&pose_picture(&joints, whole.width as usize, whole.height as usize)))
}

/// A picture that is narrower than the judge's with its first and last column repeated, and how many were put before
/// it; nothing if it is wide enough. Cut to the judge's shape instead, it would lose head and feet.
fn widened(p: &Picture) -> (u32, Option<Picture>) {
    let (wanted_w, wanted_h) = (judges::WIDTH as u32, judges::HEIGHT as u32);
    let width = (p.height * wanted_w).div_ceil(wanted_h);
    if width <= p.width {
        return (0, None);
    }
    let (left, right) = ((width - p.width) / 2, (width - p.width).div_ceil(2));
    let mut rgb = Vec::with_capacity(width as usize * p.height as usize * 3);
    for row in p.rgb.chunks_exact(p.width as usize * 3) {
        rgb.extend(row[..3].repeat(left as usize));
        rgb.extend(row);
        rgb.extend(row[row.len() - 3..].repeat(right as usize));
    }
    (left, Some(Picture { width, height: p.height, rgb }))
}

fn frame(p: &Picture) -> Result<video_prompt::Picture, ModelError> {
    video_prompt::Picture::new(p.width as usize, p.height as usize, p.rgb.clone())
}

fn picture(made: &video_prompt::Picture) -> Picture {
    Picture { width: made.width() as u32, height: made.height() as u32, rgb: made.rgb().to_vec() }
}
