//! Files that a client may send: sound ones, and ones that lie.

use std::io::Write;

use muxide::api::{MuxerBuilder, VideoCodec};
use openh264::encoder::Encoder;
use openh264::formats::{RgbSliceU8, YUVBuffer};

/// An MP4 at 24 frames/s whose frames become brighter.
pub fn mp4(width: u32, height: u32, frames: u32) -> Vec<u8> {
    mp4_at(width, height, frames, 24)
}

/// The same at another rate.
pub fn mp4_at(width: u32, height: u32, frames: u32, fps: u32) -> Vec<u8> {
    let mut encoder = Encoder::new().expect("an encoder");
    let mut file = Vec::new();
    let muxer = MuxerBuilder::new(&mut file).video(VideoCodec::H264, width, height, f64::from(fps)).build();
    let mut muxer = muxer.expect("a muxer");
    for i in 0..frames {
        let mut rgb = vec![(i * 7) as u8; (width * height * 3) as usize];
        // A bright bar that moves: something to find an edge of.
        for row in rgb.chunks_mut(width as usize * 3) {
            let at = (i as usize * 3) % (width as usize - 8) * 3;
            row[at..at + 24].fill(250);
        }
        let source = RgbSliceU8::new(&rgb, (width as usize, height as usize));
        let coded = encoder.encode(&YUVBuffer::from_rgb8_source(source)).expect("a frame").to_vec();
        muxer.write_video(f64::from(i) / f64::from(fps), &coded, i == 0).expect("memory");
    }
    muxer.finish().expect("memory");
    file
}

pub fn png(width: u32, height: u32, shade: u8) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().expect("memory");
    writer.write_image_data(&vec![shade; (width * height * 3) as usize]).expect("memory");
    writer.finish().expect("memory");
    file
}

/// A small PNG that claims `width` x `height` pixels and unpacks to eight million bytes.
pub fn picture_bomb(width: u32, height: u32) -> Vec<u8> {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    zlib.write_all(&vec![0; 8 << 20]).expect("memory");
    let mut head = Vec::from(width.to_be_bytes());
    head.extend(height.to_be_bytes());
    head.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, body) in [(b"IHDR", head), (b"IDAT", zlib.finish().expect("memory")), (b"IEND", Vec::new())] {
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

/// A form with these files, each in a field `file`.
pub fn form(boundary: &str, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file) in files {
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        body.extend(head.as_bytes());
        body.extend(file);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{boundary}--\r\n").as_bytes());
    body
}
