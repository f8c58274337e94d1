//! Tests of the decoder: real files of every kind, and files that lie.

use super::*;
use crate::frame::Pictures;
use crate::model::judges::{Judges, Part as JudgePart};
use crate::model::video_prompt::{self, control_pictures};
use crate::proto::decode::{Extraction, JUDGE_FILES, Media, Part};
use crate::sys::shm::Access;

#[path = "../../tests/support/files.rs"]
#[allow(dead_code, reason = "every test uses another part")]
mod files;

fn parts(files: &[(Media, Vec<u8>)]) -> (Vec<u8>, Vec<Part>) {
    let (mut bytes, mut parts) = (Vec::new(), Vec::new());
    for (media, file) in files {
        parts.push(Part { media: *media, at: bytes.len() as u64, bytes: file.len() as u64 });
        bytes.extend_from_slice(file);
    }
    (bytes, parts)
}

fn work(files: &[(Media, Vec<u8>)], job: Job) -> Result<(FromDecoder, OwnedFd), DecodeError> {
    work_with(files, job, None)
}

fn work_with(
    files: &[(Media, Vec<u8>)],
    job: Job,
    judge: Option<&JudgeFiles>,
) -> Result<(FromDecoder, OwnedFd), DecodeError> {
    let (bytes, parts) = parts(files);
    let memory = SharedMemory::create("test", bytes.len().max(1)).expect("memory");
    memory.write(0, &bytes);
    answer(memory.read_only_fd().expect("a descriptor"), &parts, &job, judge)
}

fn refused(files: &[(Media, Vec<u8>)]) -> String {
    match work(files, Job::Probe) {
        Err(DecodeError::File(what)) => what,
        other => panic!("not refused: {other:?}"),
    }
}

fn picture(width: u32, height: u32, shade: u8) -> Picture {
    Picture { width, height, rgb: [shade, 255 - shade, 40].repeat((width * height) as usize) }
}

fn shared_picture(answer: (FromDecoder, OwnedFd)) -> (About, Vec<u8>) {
    let FromDecoder::Picture { about, bytes } = answer.0 else { panic!("no picture: {:?}", answer.0) };
    let memory = SharedMemory::from_fd(answer.1, Access::ReadOnly).expect("shared memory");
    let mut picture = vec![0; bytes as usize];
    memory.read(0, &mut picture);
    (about, picture)
}

#[test]
fn every_kind_of_file_is_read() {
    let clip = [(Media::Mp4, files::mp4_at(96, 64, 12, 12))];
    let (about, poster) = shared_picture(work(&clip, Job::Probe).expect("a sound clip"));
    assert_eq!((about.width, about.height, about.frames), (96, 64, 12));
    assert!((about.fps - 12.0).abs() < 1.5, "{}", about.fps);
    assert_eq!(turbojpeg::read_header(&poster).expect("a JPEG").width, 96);
    let (_, first) = shared_picture(work(&clip, Job::Frame { index: 2 }).expect("there are twelve"));
    let (_, last) = shared_picture(work(&clip, Job::Frame { index: 11 }).expect("there are twelve"));
    let grey = |png: &[u8]| pixels(png)[3 * 48];
    assert!(grey(&last) > grey(&first) + 40, "{} after {}", grey(&last), grey(&first));
    assert!(matches!(work(&clip, Job::Frame { index: 12 }), Err(DecodeError::NoPicture { last: 11, .. })));
    let sequence = [(Media::Png, files::png(64, 48, 9)), (Media::Jpeg, jpeg(&picture(64, 48, 99)).expect("small"))];
    let (about, _) = shared_picture(work(&sequence, Job::Probe).expect("two pictures"));
    assert_eq!((about.width, about.height, about.frames, about.fps), (64, 48, 2, 0.0));
}

#[test]
fn pictures_come_at_the_size_and_rate_of_the_session() {
    let clip = [(Media::Mp4, files::mp4_at(96, 64, 12, 12))];
    let shape = Shape { width: 128, height: 72, fps: 24 };
    let job = |count, last| Job::Pictures { extraction: None, shape, count, last };
    let open = |answer: (FromDecoder, OwnedFd)| Pictures::open(answer.1).expect("a block of pictures");
    let all = open(work(&clip, job(100, false)).expect("a sound clip"));
    assert_eq!(all.size(), (128, 72));
    assert!((22..=26).contains(&all.count()), "a second at 24 frames/s: {}", all.count());
    let tail = open(work(&clip, job(4, true)).expect("a sound clip"));
    assert_eq!(tail.count(), 4);
    let (mut end, mut same) = (Vec::new(), Vec::new());
    tail.read(3, &mut end).expect("it is there");
    all.read(99, &mut same).expect("the last one");
    assert_eq!(end, same);
    let canny = Job::Pictures { extraction: Some(Extraction::Canny), shape, count: 3, last: false };
    assert_eq!(open(work(&clip, canny).expect("edges")).count(), 3);
}

/// Two rendered frames of a walking figure, 320x192.
const WALK: [&[u8]; 2] = [include_bytes!("../../tests/data/walk_0.png"), include_bytes!("../../tests/data/walk_1.png")];

fn walk() -> [(Media, Vec<u8>); 2] {
    WALK.map(|file| (Media::Png, file.to_vec()))
}

fn pixels(png: &[u8]) -> Vec<u8> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("small")];
    reader.next_frame(&mut pixels).expect("a PNG");
    pixels
}

/// The judges of the model that is shipped.
fn judges() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gamegen-x-mini/judges")
}

fn judge_files() -> JudgeFiles {
    let read = |name: &str| std::fs::read(judges().with_file_name(name)).expect("a file of the judge");
    let [config, weights] = JUDGE_FILES;
    JudgeFiles { config: read(config), weights: read(weights) }
}

#[test]
fn what_is_extracted_is_what_the_model_takes_for_control_pictures() {
    let shape = Shape { width: 320, height: 192, fps: 24 };
    let frame = |png: &[u8]| video_prompt::Picture::new(320, 192, pixels(png)).expect("a frame");
    let frames = WALK.map(frame);
    let JudgeFiles { config, weights } = judge_files();
    let mut judges = Judges::from_bytes(&judges(), JudgePart::Pose, &config, weights).expect("the judge loads");
    for extraction in Extraction::ALL {
        let job = Job::Pictures { extraction: Some(extraction), shape, count: 2, last: false };
        let block = work_with(&walk(), job, Some(&judge_files())).expect("two frames");
        let block = Pictures::open(block.1).expect("a block of pictures");
        let wanted = control_pictures(extraction.name(), &frames, Some(&mut judges)).expect("control pictures");
        assert_eq!(block.count(), 2);
        for (i, wanted) in wanted.iter().enumerate() {
            let mut found = Vec::new();
            block.read(i as u64, &mut found).expect("it is there");
            assert!(found == wanted.rgb(), "{}: picture {i} differs", extraction.name());
        }
        let lit = wanted[1].rgb().chunks(3).filter(|p| **p != wanted[1].rgb()[..3]).count();
        assert!(lit > 50, "{}: there is something to see: {lit} pixels", extraction.name());
    }
}

#[test]
fn a_pose_is_found_in_pictures_of_any_size_where_the_figure_is() {
    let poses = |files: &[(Media, Vec<u8>)], width, height| {
        let shape = Shape { width, height, fps: 24 };
        let job = Job::Pictures { extraction: Some(Extraction::Pose), shape, count: 1, last: false };
        let block = Pictures::open(work_with(files, job, Some(&judge_files())).expect("a pose").1).expect("pictures");
        let mut rgb = Vec::new();
        block.read(0, &mut rgb).expect("it is there");
        let lit: Vec<usize> = (0..rgb.len() / 3).filter(|i| rgb[3 * i..][..3] != [0; 3]).collect();
        assert!(!lit.is_empty(), "{width}x{height}: no pose");
        let mean = |of: &dyn Fn(usize) -> usize| lit.iter().map(|i| of(*i)).sum::<usize>() / lit.len();
        (mean(&|i| i % width as usize), mean(&|i| i / width as usize))
    };
    let (x, y) = poses(&walk(), 320, 192);
    let twice = poses(&walk(), 640, 384);
    assert!(twice.0.abs_diff(2 * x) < 12 && twice.1.abs_diff(2 * y) < 12, "{twice:?} at twice {:?}", (x, y));
    // As high and narrower: both sides of the frame are cut off, the figure stays in the middle.
    let narrow = poses(&walk(), 192, 192);
    assert!((narrow.0 + 64).abs_diff(x) < 12 && narrow.1.abs_diff(y) < 12, "{narrow:?} of {:?}", (x, y));
}

#[test]
fn poses_need_their_judge_and_say_so() {
    let preview = || Job::Preview { extraction: Some(Extraction::Pose), index: 0 };
    assert!(matches!(work(&walk(), preview()), Err(DecodeError::NoJudge)));
    let broken = JudgeFiles { weights: vec![0; 40], ..judge_files() };
    let Err(error) = work_with(&walk(), preview(), Some(&broken)) else { panic!("it was used") };
    assert!(chain(&error).contains("judges/pose"), "{}", chain(&error));
    let (about, _) = shared_picture(work_with(&walk(), preview(), Some(&judge_files())).expect("a pose"));
    assert_eq!((about.width, about.height), (320, 192));
    let names = [JudgePart::Pose.config_file(), JudgePart::Pose.weights_file()];
    assert_eq!(names.map(|name| format!("{}/{name}", crate::model::judges::FOLDER)), JUDGE_FILES);
}

#[test]
fn what_cannot_be_read_is_refused_with_a_reason() {
    type Files<'a> = &'a [(Media, Vec<u8>)];
    let cases: [(Files<'_>, &str); 7] = [
        (&[(Media::Png, b"\x89PNG\r\n\x1a\nnonsense".to_vec())], "not a PNG"),
        (&[(Media::Jpeg, b"\xff\xd8\xff\xe0nonsense".to_vec())], "not a JPEG"),
        (&[(Media::Mp4, b"\x00\x00\x00\x18ftypisom".to_vec())], "not an MP4"),
        (&[(Media::Png, files::png(64, 48, 1)), (Media::Png, files::png(48, 64, 1))], "pictures of 64x48 and of 48x64"),
        (&[(Media::Png, files::png(8, 8, 1))], "8x8 pixels; allowed"),
        (&[(Media::Mp4, files::mp4(64, 64, 2)), (Media::Png, files::png(64, 64, 1))], "one clip, or pictures"),
        (&[], "one clip, or pictures"),
    ];
    for (files, expected) in cases {
        let what = refused(files);
        assert!(what.contains(expected), "{what:?} does not say {expected:?}");
    }
    let mut cut = files::mp4(64, 64, 6);
    cut.truncate(cut.len() / 2);
    refused(&[(Media::Mp4, cut)]);
}

#[test]
fn a_picture_that_claims_to_be_huge_is_refused_before_it_is_unpacked() {
    for (width, height) in [(60_000, 60_000), (1921, 64), (64, 1089), (u32::MAX >> 1, 1)] {
        let file = files::picture_bomb(width, height);
        assert!(file.len() < 64 * 1024, "it is a small file: {} bytes", file.len());
        let what = refused(&[(Media::Png, file)]);
        assert!(what.contains("allowed: 16x16 to 1920x1088") || what.contains("not a PNG"), "{what}");
    }
}
