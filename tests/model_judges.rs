//! Video prompts that are taken from pictures, and what the judges say, against the recorded values of PyTorch.

mod parity;

use gamegend::model::ModelError;
use gamegend::model::judges::{Judges, Part, Small};
use gamegend::model::video_prompt::{self, Joint, Picture, control_pictures, motion_field, pose_picture};
use parity::{Fixture, executors, folder};

/// Pictures of a fixture [T, H, W, 3].
fn pictures(fixture: &Fixture, name: &str) -> Vec<Picture> {
    let t = fixture.get(name);
    let (height, width) = (t.dims[1], t.dims[2]);
    let bytes = |frame: &[f32]| frame.iter().map(|v| *v as u8).collect();
    let picture = |frame| Picture::new(width, height, bytes(frame)).expect("a recorded picture");
    t.data.chunks(width * height * 3).map(picture).collect()
}

#[test]
fn video_prompts_are_those_of_pytorch() {
    let fixture = Fixture::of_any_model("video_prompts");
    let frames = pictures(&fixture, "frames");
    for kind in [video_prompt::CANNY, video_prompt::MOTION_VECTORS] {
        let found = control_pictures(kind, &frames, None).expect("the frames have one size");
        assert!(found == pictures(&fixture, kind), "{kind}: the bytes differ");
    }
    let field = motion_field(&frames[1], &frames[2]).expect("the frames have one size");
    let recorded = &fixture.data("field")[2 * field.steps.len() * 2..];
    let steps: Vec<f32> = field.steps.iter().flat_map(|(dx, dy)| [*dx as f32, *dy as f32]).collect();
    assert_eq!(steps, recorded);
    assert!(steps.iter().any(|s| *s != 0.0), "nothing moves");

    let joints = fixture.get("joints");
    let joint = |j: &[f32]| Joint { x: j[0], y: j[1], seen: j[2] > 0.5 };
    for (i, recorded) in pictures(&fixture, "pose").iter().enumerate() {
        let row = &joints.data[i * joints.dims[1] * 3..][..joints.dims[1] * 3];
        let joints: Vec<Joint> = row.chunks(3).map(joint).collect();
        let found = pose_picture(&joints, recorded.width(), recorded.height());
        let off = found.rgb().iter().zip(recorded.rgb()).filter(|(a, b)| a != b).count();
        // A pixel whose middle lies on the border of a limb may fall on either side.
        assert!(off <= 6, "pose {i}: {off} bytes differ");
    }
}

#[test]
fn what_cannot_be_extracted_is_said() {
    let frame = Picture::new(64, 64, vec![7; 64 * 64 * 3]).expect("64x64 pixels");
    let refusal = |kind: &str| match control_pictures(kind, std::slice::from_ref(&frame), None) {
        Err(error @ ModelError::Request { .. }) => error.to_string(),
        other => panic!("{kind}: {:?}", other.map(|pictures| pictures.len())),
    };
    let pose = "video_prompt is \"pose\", allowed is canny or motion_vectors: there is no pose judge";
    assert_eq!(refusal("pose"), pose);
    assert!(refusal("depth").contains("one of [\"canny\", \"motion_vectors\", \"pose\"]"));
    let error = Small::new(&frame).expect_err("it is too small");
    assert!(error.to_string().contains("64x64 pixels") && error.to_string().contains("160x96"), "{error}");
}

/// The judges of the model, if it has any.
fn folder_of_judges() -> Option<std::path::PathBuf> {
    let dir = folder("GAMEGEN_TEST_MODEL", "models/gamegen-x-mini").join("judges");
    if !dir.exists() {
        println!("the model has no judges");
        return None;
    }
    Some(dir)
}

#[test]
fn judges_say_what_they_say_in_pytorch() {
    let Some(dir) = folder_of_judges() else { return };
    let fixture = Fixture::open("judges");
    let frames: Vec<Small> =
        pictures(&fixture, "frames").iter().map(|p| Small::new(p).expect("a size that is judged")).collect();
    for (executor, mut judge) in executors() {
        let mut judges = Judges::load(&dir, &Part::ALL, executor).expect("the judges load");
        let (mut features, mut logits) = (Vec::new(), Vec::new());
        for frame in &frames[..2] {
            let row = judges.features(frame).expect("features");
            logits.extend(judges.logits(&row).expect("logits"));
            features.extend(row);
        }
        judge.same("features", &features, &fixture.data("features")[..features.len()]);
        judge.same("logits", &logits, &fixture.data("logits")[..logits.len()]);
        let keys = judges.keys(&frames).expect("one window");
        assert_eq!(keys.len(), frames.len() + 1 - judges.window().expect("there is a keys judge"));
        judge.same("keys", &keys.concat(), fixture.data("keys"));
        let joints: Vec<f32> =
            frames[..2].iter().flat_map(|f| judges.joints(f).expect("joints").into_iter().flatten()).collect();
        judge.same("pose", &joints, fixture.data("pose"));
    }
}

#[test]
fn a_pose_is_drawn_where_the_judge_sees_it() {
    let Some(dir) = folder_of_judges() else { return };
    let executor = gamegend::compute::cpu::CpuExecutor::new(2).expect("two threads");
    let mut judges = Judges::load(&dir, &[Part::Pose], Box::new(executor)).expect("the judge loads");
    let frame = Picture::new(320, 192, vec![90; 320 * 192 * 3]).expect("320x192 pixels");
    let found = control_pictures(video_prompt::POSE, &[frame], Some(&mut judges)).expect("a pose");
    assert_eq!((found.len(), found[0].width(), found[0].height()), (1, 320, 192));
    assert!(judges.window().is_err(), "there is no keys judge");
}
