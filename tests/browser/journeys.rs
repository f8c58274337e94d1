//! What people do with the page over a longer while: make, play, find again, replay, continue, fork, delete, upload;
//! and what the page does when the daemon goes away under it.

use std::path::Path;
use std::time::Duration;

use gamegend::proto::api::Kind;
use serde_json::{Value, json};

use super::support::{Api, Scratch, files, peer};
use super::webdriver::{Browser, missing};
use super::{FIRST_FRAME_MAX, STEP_MAX, daemon, frame_number, open_view, screenshots, text, type_prompt, wait};

/// The left shift key in WebDriver (section 17.4.2 of the specification).
const SHIFT: &str = "\u{e008}";

/// Clicks a button of the card of `id` by its text.
fn act(browser: &Browser, id: &str, action: &str) {
    let click = format!(
        "const b = [...document.querySelectorAll('[data-id=\"{id}\"] .link')].find((x) => x.textContent === {action:?});
         b.click(); return null"
    );
    browser.script(&click);
}

fn cards(browser: &Browser) -> Vec<(String, String)> {
    let list = "return [...document.querySelectorAll('#clips .item')].map((c) => [c.dataset.id, c.dataset.kind])";
    let list = browser.script(list);
    let pair = |v: &Value| (v[0].as_str().unwrap_or("").to_string(), v[1].as_str().unwrap_or("").to_string());
    list.as_array().expect("a list").iter().map(pair).collect()
}

/// Chooses in a list of the settings.
fn choose(browser: &Browser, id: &str, value: &str) {
    browser.script(&format!(
        "const s = document.getElementById({id:?}); s.value = {value:?};
         s.dispatchEvent(new Event('change')); return null"
    ));
}

fn play_for(browser: &Browser, prompt: &str, frames: u64) {
    type_prompt(browser, prompt);
    browser.click(&browser.find("#play"));
    wait("frames arrive", FIRST_FRAME_MAX, || frame_number(browser) > frames);
}

fn stop(browser: &Browser) {
    browser.click(&browser.find("#cancel"));
    wait("it ends", STEP_MAX, || text(browser, "state") == "ready");
}

/// From a prompt over a live world to its replay, its continuation, and away again.
fn journey(browser: &Browser, base: &str, name: &str) {
    browser.size(1360, 900);
    browser.go(base);
    wait("the daemon is ready", FIRST_FRAME_MAX, || text(browser, "state") == "ready");
    play_for(browser, "a green meadow with mountains under a clear sky", 30);
    browser.hold_keys(&["w", "d"], || {
        let from = frame_number(browser);
        wait("frames go on", FIRST_FRAME_MAX, || frame_number(browser) > from + 24);
    });
    browser.click(&browser.find("#keep"));
    wait("the moment is kept", STEP_MAX, || text(browser, "toasts").contains("Kept"));
    stop(browser);
    open_view(browser, "history");
    wait("both are there", STEP_MAX, || cards(browser).len() == 2);
    let (world, kind) = cards(browser).into_iter().find(|c| c.1 == "session").expect("the world");
    assert_eq!(kind, "session");
    browser.screenshot(&screenshots().join(format!("{name}-history.png")));
    let lengths = "return [...document.querySelectorAll('#clips .length')].map((l) => parseFloat(l.textContent) > 1)";
    assert_eq!(browser.script(lengths), json!([true, true]), "each tells how much was played");
    act(browser, &world, "Replay");
    let playing = "const v = document.getElementById('clip'); return !v.hidden && v.readyState >= 2";
    wait("the replay is made and plays", Duration::from_secs(120), || browser.script(playing) == Value::Bool(true));
    let seconds = browser.script("return document.getElementById('clip').duration").as_f64().expect("a number");
    assert!(seconds > 1.5, "the whole world is in it: {seconds} s");
    browser.screenshot(&screenshots().join(format!("{name}-replay.png")));
    open_view(browser, "history");
    wait("three are there", STEP_MAX, || cards(browser).len() == 3);
    act(browser, &world, "Continue");
    // Beyond its first snapshot: a world that ends before it leaves nothing to go on from.
    wait("it goes on", FIRST_FRAME_MAX, || text(browser, "state") == "connected" && frame_number(browser) > 30);
    assert_eq!(browser.script("return document.body.dataset.view"), json!("control"));
    stop(browser);
    open_view(browser, "history");
    wait("four are there", STEP_MAX, || cards(browser).len() == 4);
    act(browser, &world, "Delete");
    assert_eq!(cards(browser).len(), 4, "it is asked first");
    act(browser, &world, "Delete for good?");
    wait("one is gone", STEP_MAX, || cards(browser).len() == 3);
    assert!(cards(browser).iter().all(|c| c.0 != world));
    let choose = "const s = document.getElementById('history-kind'); s.value = 'replay';
                  s.dispatchEvent(new Event('change')); return null";
    browser.script(choose);
    wait("only replays are shown", STEP_MAX, || cards(browser).iter().map(|c| c.1.as_str()).eq(["replay"]));
}

#[test]
fn a_world_is_played_kept_replayed_continued_and_deleted() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser-journey");
    let browser = Browser::start(scratch.path());
    let mut api = Api::start("journey");
    let peer = api.worker_up(Duration::from_millis(5));
    journey(&browser, &format!("http://{}/", api.address), "page");
    let asked = peer.asked.lock().expect("no panic");
    assert!(asked.opened.iter().any(|o| o.replay) && asked.opened.iter().any(|o| o.from_snapshot));
    drop(asked);
    assert_eq!(browser.errors(), Vec::<String>::new(), "the console is clean");
}

#[test]
fn a_page_that_was_closed_finds_its_world_running() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser-return");
    let browser = Browser::start(scratch.path());
    let mut api = Api::start("return");
    let peer = api.worker_up(Duration::ZERO);
    let base = format!("http://{}/", api.address);
    browser.size(1360, 900);
    browser.go(&base);
    wait("the daemon is ready", FIRST_FRAME_MAX, || text(&browser, "state") == "ready");
    play_for(&browser, "a canyon", 30);
    browser.go("about:blank");
    browser.go(&base);
    wait("the daemon is ready", FIRST_FRAME_MAX, || text(&browser, "state") == "ready");
    open_view(&browser, "history");
    wait("it is live", STEP_MAX, || {
        browser.script("return document.querySelectorAll('.badge.now').length") == json!(1)
    });
    let (world, _) = cards(&browser).remove(0);
    browser.settle();
    browser.screenshot(&screenshots().join("page-live.png"));
    act(&browser, &world, "Return");
    wait("it goes on", FIRST_FRAME_MAX, || text(&browser, "state") == "connected" && frame_number(&browser) > 30);
    browser.hold_keys(&["d"], || {
        let held = || peer.asked.lock().expect("no panic").keys.last().is_some_and(|k| k.names() == ["D"]);
        wait("it is steered", STEP_MAX, held);
    });
    assert_eq!(peer.asked.lock().expect("no panic").opened.len(), 1, "no other world began");
    stop(&browser);
    assert_eq!(browser.errors(), Vec::<String>::new(), "the console is clean");
}

#[test]
fn the_same_journey_through_the_real_daemon() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser-daemon-journey");
    let browser = Browser::start(scratch.path());
    let host = daemon::Daemon::start("journey", "cpu");
    journey(&browser, &format!("http://{}/", host.address), "daemon");
}

/// Number of the process that has a role in the daemon.
fn role(host: &daemon::Daemon, name: &str) -> u32 {
    let out = std::process::Command::new("pgrep")
        .args(["-P", &host.pid().to_string(), "-f", &format!("[-]-role {name}")])
        .output()
        .expect("pgrep is there");
    String::from_utf8_lossy(&out.stdout).trim().parse().unwrap_or_else(|_| panic!("no {name}: {}", host.log()))
}

#[test]
fn the_real_daemon_reads_an_upload_and_comes_back_when_its_processes_are_killed() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser-daemon-kill");
    let browser = Browser::start(scratch.path());
    let host = daemon::Daemon::start("kill", "cpu");
    browser.size(1360, 900);
    browser.go(&format!("http://{}/", host.address));
    wait("the daemon is ready", FIRST_FRAME_MAX, || text(&browser, "state") == "ready");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = ["walk_0.png", "walk_1.png"].map(|name| data.join(name).display().to_string());
    browser.type_into(&browser.find("#upload"), &files.join("\n"));
    let shown = "const [a, b] = ['preview-source', 'preview-control'].map((i) => document.getElementById(i));
                 return a.naturalWidth === 320 && b.naturalWidth === 320";
    let choose = |kind: &str| {
        browser.script(&format!(
            "const s = document.getElementById('prompt-type'); s.value = {kind:?};
             document.getElementById('preview-control').removeAttribute('src');
             s.dispatchEvent(new Event('change')); return null"
        ));
    };
    let judge = daemon::model_dir().join("judges/pose").exists();
    for kind in ["canny", "motion_vectors", "pose"].into_iter().filter(|k| judge || *k != "pose") {
        choose(kind);
        wait("both previews are there", STEP_MAX, || browser.script(shown) == Value::Bool(true));
    }
    assert_eq!(text(&browser, "prompt-missing").contains("pose judge"), !judge);
    browser.script("document.getElementById('video-prompt').scrollIntoView(); return null");
    browser.settle();
    browser.screenshot(&screenshots().join("daemon-upload.png"));

    play_for(&browser, "a green meadow with mountains under a clear sky", 30);
    for (role_name, away) in [("worker", "recovering"), ("api", "reconnecting")] {
        let before = frame_number(&browser);
        // Its state is seen for a moment only: the page notes all of them.
        browser.script(
            "window.seen = []; new MutationObserver(() => seen.push(document.getElementById('state').textContent))
                 .observe(document.getElementById('state'), {childList: true, characterData: true, subtree: true});
             return null",
        );
        daemon::signal(role(&host, role_name), "KILL");
        let seen = || browser.script("return window.seen").to_string();
        wait("the page says so", STEP_MAX, || seen().contains(away));
        wait("it goes on", FIRST_FRAME_MAX, || {
            text(&browser, "state") == "connected" && frame_number(&browser) > before + 12
        });
        println!("{role_name} killed at frame {before}: {}, now frame {}", seen(), frame_number(&browser));
    }
    stop(&browser);
}

#[test]
fn a_clip_is_uploaded_looked_at_and_leads_a_generation() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser-upload");
    let browser = Browser::start(scratch.path());
    let mut api = Api::start("upload-page");
    let peer = api.worker_up(Duration::from_millis(2));
    browser.size(1360, 900);
    browser.go(&format!("http://{}/", api.address));
    wait("the daemon is ready", FIRST_FRAME_MAX, || text(&browser, "state") == "ready");
    let clip = scratch.path().join("clip.mp4");
    std::fs::write(&clip, files::mp4(160, 96, 24)).expect("our own folder");
    let field = browser.find("#upload");
    browser.type_into(&field, &clip.display().to_string());
    let shown = "const [a, b] = ['preview-source', 'preview-control'].map((i) => document.getElementById(i));
                 return a.naturalWidth === 160 && b.naturalWidth === 160 && a.src !== b.src";
    wait("both previews are there", STEP_MAX, || browser.script(shown) == Value::Bool(true));
    assert!(text(&browser, "upload-state").contains("24 frames, 160×96"), "{}", text(&browser, "upload-state"));
    assert_eq!(browser.script("return document.getElementById('apply').checked"), Value::Bool(true));
    browser.script("document.getElementById('video-prompt').scrollIntoView(); return null");
    browser.settle();
    browser.screenshot(&screenshots().join("page-upload.png"));
    type_prompt(&browser, "a canyon");
    browser.script("document.querySelector('details').open = true; document.getElementById('frames').value = 12");
    browser.click(&browser.find("#generate"));
    wait("it leads the generation", STEP_MAX, || !peer.asked.lock().expect("no panic").leads.is_empty());
    let playing = "const v = document.getElementById('clip'); return !v.hidden && v.readyState >= 2";
    wait("the clip plays", STEP_MAX, || browser.script(playing) == Value::Bool(true));
    // A kind that the model was not trained for can be looked at, not applied.
    let choose = "const s = document.getElementById('prompt-type'); s.value = 'motion_vectors';
                  s.dispatchEvent(new Event('change')); return document.getElementById('apply').disabled";
    assert_eq!(browser.script(choose), Value::Bool(true));
    wait("it is looked at", STEP_MAX, || browser.script(shown) == Value::Bool(true));
    // One that cannot be taken from pictures cannot be chosen, and the page says why.
    let pose =
        "const o = document.querySelector('#prompt-type option[value=pose]'); return [o.disabled, o.textContent]";
    assert_eq!(browser.script(pose), json!([true, "pose (unavailable)"]));
    assert!(text(&browser, "prompt-missing").contains("has no pose judge"), "{}", text(&browser, "prompt-missing"));
    // What is no picture is refused in words.
    let fake = scratch.path().join("fake.png");
    std::fs::write(&fake, b"<svg onload=alert(1)>").expect("our own folder");
    browser.type_into(&browser.find("#upload"), &fake.display().to_string());
    wait("it is refused", STEP_MAX, || text(&browser, "upload-state").contains("none of video/mp4"));
}

#[test]
fn a_restarted_daemon_is_found_again_with_its_history() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser-restart");
    let browser = Browser::start(scratch.path());
    let state = Scratch::new("browser-restart-state");
    let keep = |config: &mut gamegend::config::Config| config.state.directory = state.path().to_path_buf();
    let mut api = Api::start_with("restart", keep);
    let address = api.address;
    let _peer = api.worker_up(Duration::from_millis(2));
    browser.size(1360, 900);
    browser.go(&format!("http://{address}/"));
    wait("the daemon is ready", FIRST_FRAME_MAX, || text(&browser, "state") == "ready");
    play_for(&browser, "a beach at sunset", 30);
    drop(_peer);
    drop(api);
    wait("the page says so", STEP_MAX, || ["reconnecting", "offline"].contains(&text(&browser, "state").as_str()));
    let mut api = Api::start_at("restart-again", address, keep);
    let peer = api.worker_up(Duration::from_millis(2));
    wait("the page is ready again", STEP_MAX, || text(&browser, "state") == "ready");
    open_view(&browser, "history");
    wait("the world is still there", STEP_MAX, || cards(&browser).iter().map(|c| c.1.as_str()).eq(["session"]));
    let (world, _) = cards(&browser).remove(0);
    assert_eq!(api.network().status(&world).kind, Kind::Session);
    act(&browser, &world, "Continue");
    wait("it goes on", FIRST_FRAME_MAX, || text(&browser, "state") == "connected" && frame_number(&browser) > 4);
    assert!(peer.asked.lock().expect("no panic").opened.iter().all(|o| o.from_snapshot));
    stop(&browser);
}

#[test]
fn either_renderer_and_either_format_shows_the_world() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser-draw");
    let browser = Browser::start(scratch.path());
    let mut api = Api::start("draw");
    let _peer = api.worker_up(Duration::ZERO);
    browser.size(1360, 900);
    browser.go(&format!("http://{}/", api.address));
    wait("the daemon is ready", FIRST_FRAME_MAX, || text(&browser, "state") == "ready");
    for (renderer, format) in [("webgl", "h264"), ("2d", "jpeg"), ("2d", "h264"), ("webgl", "jpeg")] {
        choose(&browser, "set-renderer", renderer);
        choose(&browser, "set-format", format);
        play_for(&browser, "a canyon", 12);
        let picture = super::picture(&browser);
        assert!(picture.iter().any(|v| (v - picture[0]).abs() > 8.0), "{renderer}, {format}: one colour");
        let used = "return document.getElementById('facts').textContent";
        open_view(&browser, "settings");
        wait("the page tells how it draws", STEP_MAX, || {
            browser.script(used).as_str().is_some_and(|t| t.contains("Drawn"))
        });
        println!(
            "{renderer}, {format}: {}",
            browser.script(used).as_str().unwrap_or("").split("Drawn with").last().unwrap_or("")
        );
        open_view(&browser, "control");
        stop(&browser);
    }
    assert_eq!(browser.errors(), Vec::<String>::new(), "the console is clean");
}

#[test]
fn a_picture_that_becomes_smaller_and_large_again_is_shown_in_either_format() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser-shrinks");
    let browser = Browser::start(scratch.path());
    let mut api = Api::start("shrinks-page");
    let _peer = api.worker_up(Duration::ZERO);
    browser.size(1360, 900);
    browser.go(&format!("http://{}/", api.address));
    wait("the daemon is ready", FIRST_FRAME_MAX, || text(&browser, "state") == "ready");
    let canvas = "const c = document.getElementById('viewport'); return `${c.width}×${c.height}`";
    let sides = || (browser.script(canvas).as_str().unwrap_or("").to_string(), text(&browser, "size-now"));
    for format in ["h264", "jpeg"] {
        choose(&browser, "set-format", format);
        play_for(&browser, peer::SHRINKS, 8);
        let whole = sides();
        assert_eq!(whole.0, whole.1, "{format}: the page tells the size that it shows");
        browser.hold_keys(&[SHIFT], || {
            wait("a smaller picture", STEP_MAX, || sides().0 != whole.0);
            let small = sides();
            let half = |text: &str| text.split('×').map(|n| n.parse::<u32>().unwrap_or(0) / 2).collect::<Vec<_>>();
            let found: Vec<u32> = small.0.split('×').map(|n| n.parse().unwrap_or(0)).collect();
            assert_eq!(found, half(&whole.0), "{format}");
            assert_eq!(small.0, small.1, "{format}: the page tells the size that it shows");
            let from = frame_number(&browser);
            wait("frames go on", STEP_MAX, || frame_number(&browser) > from + 6);
            let picture = super::picture(&browser);
            assert!(picture.iter().any(|v| (v - picture[0]).abs() > 8.0), "{format}: one colour");
        });
        wait("the whole size again", STEP_MAX, || sides() == whole);
        let from = frame_number(&browser);
        wait("frames go on", STEP_MAX, || frame_number(&browser) > from + 6);
        stop(&browser);
    }
    assert_eq!(browser.errors(), Vec::<String>::new(), "the console is clean");
}
