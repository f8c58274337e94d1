//! Other people's programs against a running api: a property-based tester that reads /openapi.json, a client library of
//! the OpenAI style, and the client of the documentation. They come from `tools/python`.

#[path = "daemon/mod.rs"]
mod daemon;
mod support;

use std::io::copy;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::{Api, Scratch};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program of the environment that `tools/python` makes; says that the test is skipped if there is none.
fn program(name: &str) -> Option<PathBuf> {
    let path = root().join("target/python/bin").join(name);
    if path.is_file() {
        return Some(path);
    }
    daemon::skip(&format!("target/python has no {name}; tools/python says why"));
    None
}

fn text(out: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// A network address that leads to the Unix socket, where an administrator is not limited in rate.
fn administrators_address(api: &Api) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let socket = api.socket.clone();
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = UnixStream::connect(&socket) else { return };
            let (mut near_in, mut far_out) = (near.try_clone().expect("dup"), far.try_clone().expect("dup"));
            std::thread::spawn(move || {
                let _ = copy(&mut near_in, &mut far_out);
                let _ = far_out.shutdown(Shutdown::Write);
            });
            std::thread::spawn(move || {
                let (mut near, mut far): (TcpStream, UnixStream) = (near, far);
                let _ = copy(&mut far, &mut near);
                let _ = near.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

#[test]
fn schemathesis_finds_nothing() {
    let Some(program) = program("schemathesis") else { return };
    let scratch = Scratch::new("schemathesis");
    let (api, _peer) = Api::with_peer("contract");
    let base = format!("http://{}", administrators_address(&api));
    // Enough to meet every field of every operation; a person may ask for more.
    let examples = std::env::var("GAMEGEND_SCHEMATHESIS_EXAMPLES").unwrap_or_else(|_| "12".to_string());
    let out = Command::new(program)
        .current_dir(scratch.path())
        .arg("--config-file")
        .arg(root().join("tests/data/schemathesis.toml"))
        .args(["run", &format!("{base}/openapi.json"), "--url", &base, "--max-examples", &examples])
        .args(["--phases", "examples,coverage,fuzzing", "--checks", "all", "--seed", "7", "--workers", "1"])
        .args(["--max-failures", "25", "--request-timeout", "20", "--no-color"])
        .output()
        .expect("it starts");
    assert!(out.status.success(), "{}", text(&out));
    let summary: Vec<String> = text(&out).lines().rev().take(12).map(str::to_string).collect();
    println!("{}", summary.into_iter().rev().collect::<Vec<_>>().join("\n"));
}

const OPENAI: &str = r#"
import sys, time, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="not-needed", max_retries=0)
model = client.models.list().data[0].id
assert client.models.retrieve(model).id == model
video = client.videos.create(prompt="a red knight in a meadow", model=model, seconds="1", size="96x64")
assert video.object == "video" and video.status in ("queued", "in_progress", "completed"), video
done = client.videos.poll(video.id, poll_interval_ms=100)
assert done.status == "completed" and done.progress == 100 and done.seconds == "1", done
content = client.videos.download_content(video.id)
bytes_ = content.read()
assert bytes_[4:8] == b"ftyp", bytes_[:16]
assert client.videos.download_content(video.id, variant="thumbnail").read()[:2] == b"\xff\xd8"
with open(sys.argv[2], "rb") as picture:
    led = client.videos.create(prompt="it goes on", seconds="1", size="96x64", input_reference=picture)
led = client.videos.poll(led.id, poll_interval_ms=100)
assert led.status == "completed", led
remix = client.videos.poll(client.videos.remix(video.id, prompt="in the snow").id, poll_interval_ms=100)
assert remix.status == "completed" and remix.remixed_from_video_id == video.id, remix
listed = [v.id for v in client.videos.list(limit=2)]
assert sorted(listed) == sorted([video.id, led.id, remix.id]), listed
assert client.videos.delete(video.id).deleted
for call, kind, code in [
    (lambda: client.videos.retrieve(video.id), openai.NotFoundError, "unknown_session"),
    (lambda: client.videos.create(prompt=""), openai.BadRequestError, "invalid_field"),
    (lambda: client.videos.create(prompt="x", seconds="0"), openai.BadRequestError, "invalid_field"),
    (lambda: client.videos.create(prompt="x", size="wide"), openai.BadRequestError, "invalid_field"),
    (lambda: client.videos.create(prompt="x", model="other"), openai.BadRequestError, "invalid_field"),
]:
    try:
        call()
        raise SystemExit("not refused")
    except kind as e:
        assert e.code == code, (e.code, e.body)
print("ok", len(bytes_), "bytes")
"#;

#[test]
fn a_client_library_of_the_openai_style_completes_a_generation() {
    let Some(python) = program("python3") else { return };
    let scratch = Scratch::new("openai");
    let (api, _peer) = Api::with_peer("openai-api");
    let picture = scratch.path().join("picture.png");
    std::fs::write(&picture, support::files::png(96, 64, 90)).expect("our own folder");
    let base = format!("http://{}", administrators_address(&api));
    let out = Command::new(python).args(["-c", OPENAI, &base]).arg(&picture).output().expect("it starts");
    assert!(out.status.success() && text(&out).contains("ok"), "{}", text(&out));
}

#[test]
fn the_client_of_the_documentation_works_as_typed() {
    let Some(python) = program("python3") else { return };
    let lines = std::fs::read_to_string(root().join("docs/play.py")).expect("it is there").lines().count();
    assert!(lines <= 55, "{lines} lines are not fifty");
    let scratch = Scratch::new("play-py");
    let (api, _peer) = Api::with_peer("play-api");
    let out = Command::new(python)
        .current_dir(scratch.path())
        .arg(root().join("docs/play.py"))
        .args(["a meadow", &api.address.to_string()])
        .output()
        .expect("it starts");
    assert!(out.status.success(), "{}", text(&out));
    assert!(text(&out).contains("reflects control 3"), "{}", text(&out));
    let frame = std::fs::read(scratch.path().join("frame.jpg")).expect("it wrote one");
    assert_eq!(turbojpeg::read_header(&frame).expect("a JPEG").width, 320);
}
