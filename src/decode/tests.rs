//! Tests of the decoder: real files of every kind, and files that lie.

use std::io::Write;

use openh264::encoder::Encoder;
use openh264::formats::{RgbSliceU8, YUVBuffer};

use super::*;
use crate::frame::Pictures;
use crate::proto::decode::{Media, Part};
use crate::sys::shm::Access;

fn parts(files: &[(Media, Vec<u8>)]) -> (Vec<u8>, Vec<Part>) {
    let (mut bytes, mut parts) = (Vec::new(), Vec::new());
    for (media, file) in files {
        parts.push(Part { media: *media, at: bytes.len() as u64, bytes: file.len() as u64 });
        bytes.extend_from_slice(file);
    }
    (bytes, parts)
}

fn work(files: &[(Media, Vec<u8>)], job: Job) -> Result<(FromDecoder, OwnedFd), DecodeError> {
    let (bytes, parts) = parts(files);
    let memory = SharedMemory::create("test", bytes.len().max(1)).expect("memory");
    memory.write(0, &bytes);
    answer(memory.read_only_fd().expect("a descriptor"), &parts, &job)
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

fn png_of(width: u32, height: u32, shade: u8) -> Vec<u8> {
    png(&picture(width, height, shade)).expect("a small picture")
}

/// An MP4 whose frames become brighter.
fn mp4(width: u32, height: u32, frames: u8, fps: u32) -> Vec<u8> {
    let mut encoder = Encoder::new().expect("an encoder");
    let mut file = Vec::new();
    let mut muxer = muxide::api::MuxerBuilder::new(&mut file)
        .video(muxide::api::VideoCodec::H264, width, height, f64::from(fps))
        .build()
        .expect("a muxer");
    for i in 0..frames {
        let rgb = [i * 8, i * 8, i * 8].repeat((width * height) as usize);
        let source = RgbSliceU8::new(&rgb, (width as usize, height as usize));
        let coded = encoder.encode(&YUVBuffer::from_rgb8_source(source)).expect("a frame").to_vec();
        muxer.write_video(f64::from(i) / f64::from(fps), &coded, i == 0).expect("memory");
    }
    muxer.finish().expect("memory");
    file
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
    let clip = [(Media::Mp4, mp4(96, 64, 12, 12))];
    let (about, poster) = shared_picture(work(&clip, Job::Probe).expect("a sound clip"));
    assert_eq!((about.width, about.height, about.frames), (96, 64, 12));
    assert!((about.fps - 12.0).abs() < 1.5, "{}", about.fps);
    assert_eq!(turbojpeg::read_header(&poster).expect("a JPEG").width, 96);
    let (_, first) = shared_picture(work(&clip, Job::Frame { index: 2 }).expect("there are twelve"));
    let (_, last) = shared_picture(work(&clip, Job::Frame { index: 11 }).expect("there are twelve"));
    let grey = |png: &[u8]| {
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("small")];
        reader.next_frame(&mut pixels).expect("a PNG");
        pixels[3 * 48]
    };
    assert!(grey(&last) > grey(&first) + 40, "{} after {}", grey(&last), grey(&first));
    assert!(matches!(work(&clip, Job::Frame { index: 12 }), Err(DecodeError::NoPicture { last: 11, .. })));
    let sequence = [(Media::Png, png_of(64, 48, 9)), (Media::Jpeg, jpeg(&picture(64, 48, 99)).expect("small"))];
    let (about, _) = shared_picture(work(&sequence, Job::Probe).expect("two pictures"));
    assert_eq!((about.width, about.height, about.frames, about.fps), (64, 48, 2, 0.0));
}

#[test]
fn pictures_come_at_the_size_and_rate_of_the_session() {
    let clip = [(Media::Mp4, mp4(96, 64, 12, 12))];
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
    let known = extract::known();
    for extraction in Extraction::ALL.into_iter().filter(|e| !known.contains(&e.name())) {
        let preview = Job::Preview { extraction: Some(extraction), index: 0 };
        assert!(matches!(work(&clip, preview), Err(DecodeError::Unsupported(_))));
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_a_reason() {
    type Files<'a> = &'a [(Media, Vec<u8>)];
    let cases: [(Files<'_>, &str); 7] = [
        (&[(Media::Png, b"\x89PNG\r\n\x1a\nnonsense".to_vec())], "not a PNG"),
        (&[(Media::Jpeg, b"\xff\xd8\xff\xe0nonsense".to_vec())], "not a JPEG"),
        (&[(Media::Mp4, b"\x00\x00\x00\x18ftypisom".to_vec())], "not an MP4"),
        (&[(Media::Png, png_of(64, 48, 1)), (Media::Png, png_of(48, 64, 1))], "pictures of 64x48 and of 48x64"),
        (&[(Media::Png, png_of(8, 8, 1))], "8x8 pixels; allowed"),
        (&[(Media::Mp4, mp4(64, 64, 2, 24)), (Media::Png, png_of(64, 64, 1))], "one clip, or pictures"),
        (&[], "one clip, or pictures"),
    ];
    for (files, expected) in cases {
        let what = refused(files);
        assert!(what.contains(expected), "{what:?} does not say {expected:?}");
    }
    let mut cut = mp4(64, 64, 6, 24);
    cut.truncate(cut.len() / 2);
    refused(&[(Media::Mp4, cut)]);
}

/// A PNG that says it has `width` x `height` pixels, whose data are zeros compressed a thousand times.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let mut data = Vec::new();
    let mut zlib = flate2::write::ZlibEncoder::new(&mut data, flate2::Compression::best());
    zlib.write_all(&vec![0; 8 << 20]).expect("memory");
    zlib.finish().expect("memory");
    let mut head = Vec::from(width.to_be_bytes());
    head.extend(height.to_be_bytes());
    head.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, body) in [(b"IHDR", head), (b"IDAT", data), (b"IEND", Vec::new())] {
        file.extend((body.len() as u32).to_be_bytes());
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(&body);
        file.extend(kind);
        file.extend(&body);
        file.extend(crc.sum().to_be_bytes());
    }
    file
}

#[test]
fn a_picture_that_claims_to_be_huge_is_refused_before_it_is_unpacked() {
    for (width, height) in [(60_000, 60_000), (1921, 64), (64, 1089), (u32::MAX >> 1, 1)] {
        let file = bomb(width, height);
        assert!(file.len() < 64 * 1024, "it is a small file: {} bytes", file.len());
        let what = refused(&[(Media::Png, file)]);
        assert!(what.contains("allowed: 16x16 to 1920x1088") || what.contains("not a PNG"), "{what}");
    }
}
