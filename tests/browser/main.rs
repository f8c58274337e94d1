//! The page in a real browser: headless Chromium, driven through chromedriver.
//!
//! Without further words it drives the page of an api role with a test worker behind it. With `GAMEGEND_TEST_URL` set
//! it drives the page at that address instead, which is how the end-to-end test looks at a whole daemon.

#[path = "../daemon/mod.rs"]
mod daemon;
mod journeys;
mod pages;
#[path = "../support/mod.rs"]
mod support;
mod webdriver;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Api, Scratch};
use webdriver::{Browser, missing};

/// Reads the canvas as a list of average brightnesses over a grid, so that pictures can be compared by eye and by
/// number.
const PICTURE: &str = r#"
    const c = document.getElementById("viewport"), g = 24;
    const flat = new OffscreenCanvas(c.width, c.height).getContext("2d");
    flat.drawImage(c, 0, 0);
    const d = flat.getImageData(0, 0, c.width, c.height).data;
    const sums = new Array(g * g).fill(0), counts = new Array(g * g).fill(0);
    for (let y = 0; y < c.height; y++) for (let x = 0; x < c.width; x++) {
        const cell = Math.floor(y * g / c.height) * g + Math.floor(x * g / c.width), i = 4 * (y * c.width + x);
        sums[cell] += d[i] + d[i + 1] + d[i + 2];
        counts[cell] += 3;
    }
    return sums.map((s, i) => s / counts[i]);
"#;

/// How long a slow device may need for its first frame.
const FIRST_FRAME_MAX: Duration = Duration::from_secs(60);
const STEP_MAX: Duration = Duration::from_secs(30);

fn screenshots() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/browser");
    std::fs::create_dir_all(&folder).expect("the target folder is writable");
    folder
}

fn wait(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < limit, "not within {} s: {what}", limit.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn picture(browser: &Browser) -> Vec<f64> {
    let values = browser.script(PICTURE);
    values.as_array().expect("a list").iter().map(|v| v.as_f64().expect("numbers")).collect()
}

/// Mean difference of two pictures in steps of 255.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).sum::<f64>() / a.len() as f64
}

fn text(browser: &Browser, id: &str) -> String {
    browser.script(&format!("return document.getElementById({id:?}).textContent")).as_str().unwrap_or("").to_string()
}

fn frame_number(browser: &Browser) -> u64 {
    text(browser, "count").parse().unwrap_or(0)
}

/// Opens one of the views by its menu entry.
fn open_view(browser: &Browser, name: &str) {
    browser.click(&browser.find(&format!(".menu a[data-view={name}]")));
    let shown = format!("return document.body.dataset.view === {name:?}");
    wait("the view opens", STEP_MAX, || browser.script(&shown) == Value::Bool(true));
}

fn type_prompt(browser: &Browser, prompt: &str) {
    open_view(browser, "generate");
    browser.script("document.getElementById('prompt').value = ''; return null");
    let field = browser.find("#prompt");
    browser.type_into(&field, prompt);
}

/// What a player does: type, play, hold keys by keyboard and by finger, direct, stop. Leaves screenshots.
fn play(browser: &Browser, base: &str, name: &str) {
    browser.size(1360, 900);
    browser.go(base);
    wait("the daemon is ready", FIRST_FRAME_MAX, || text(browser, "state") == "ready");
    browser.screenshot(&screenshots().join(format!("{name}-start.png")));
    type_prompt(browser, "a green meadow with mountains under a clear sky");
    browser.click(&browser.find("#play"));
    wait("frames arrive", FIRST_FRAME_MAX, || frame_number(browser) > 4);
    assert_eq!(text(browser, "state"), "connected");

    let before = picture(browser);
    assert!(before.iter().any(|v| (v - before[0]).abs() > 8.0), "the picture is one colour: {:?}", &before[..8]);
    browser.hold_keys(&["w", "a"], || {
        let held = "return [...document.querySelectorAll('.key.held')].map(k => k.dataset.key).sort().join()";
        wait("the page shows the held keys", STEP_MAX, || browser.script(held) == json!("A,W"));
        let from = frame_number(browser);
        wait("frames go on", STEP_MAX, || frame_number(browser) > from + 12);
        browser.screenshot(&screenshots().join(format!("{name}-play.png")));
    });
    let after = picture(browser);
    let change = difference(&before, &after);
    assert!(change > 2.0, "the picture hardly changed while W and A were held: {change}");
    wait("the latency is measured", STEP_MAX, || text(browser, "latency").contains("ms"));
    wait("the rate is measured", STEP_MAX, || text(browser, "fps").parse::<f64>().is_ok_and(|f| f > 0.5));

    let pad = browser.find(".key-d");
    browser.hold_pointer(&pad, || {
        wait("the button is held", STEP_MAX, || {
            browser.script("return document.querySelector('.key-d').classList.contains('held')") == Value::Bool(true)
        });
    });
    let select = "const s = document.getElementById('weather'); s.selectedIndex = s.options.length - 1;
                  s.dispatchEvent(new Event('change')); return s.value";
    assert!(browser.script(select).as_str().is_some_and(|w| !w.is_empty()), "the model's words are offered");
    let instruction = browser.find("#instruction");
    browser.type_into(&instruction, "a storm begins");
    browser.click(&browser.find("#instruct"));
    let from = frame_number(browser);
    wait("frames go on", STEP_MAX, || frame_number(browser) > from + 4);
    assert_eq!(text(browser, "toasts"), "", "nothing was refused");
    println!("{name}: {} frames/s, key to frame {}", text(browser, "fps"), text(browser, "latency"));

    browser.click(&browser.find("#cancel"));
    wait("the session ends", STEP_MAX, || text(browser, "state") == "ready");
}

/// A clip: generate, watch the progress, see it among the clips, and play it as the browser decodes it.
fn clip(browser: &Browser, name: &str) {
    type_prompt(browser, "a beach at sunset");
    browser.script("document.querySelector('details').open = true; document.getElementById('frames').value = 24");
    browser.click(&browser.find("#generate"));
    let playing = "const v = document.getElementById('clip'); return !v.hidden && v.readyState >= 2 && v.videoWidth";
    wait("the browser decodes the clip", Duration::from_secs(120), || browser.script(playing).as_u64() == Some(320));
    let duration = browser.script("return document.getElementById('clip').duration").as_f64().expect("a number");
    assert!((duration - 1.0).abs() < 0.05, "24 frames at 24/s last {duration} s");
    // The video and the poster, a JPEG of its middle, show the same colours.
    let colours = r#"
        const v = document.getElementById("clip"), done = arguments[arguments.length - 1];
        v.pause(); v.currentTime = 12.2 / 24;
        v.onseeked = async () => {
            const mean = (source, w, h) => {
                const c = new OffscreenCanvas(w, h).getContext("2d");
                c.drawImage(source, 0, 0);
                const d = c.getImageData(0, 0, w, h).data, m = [0, 0, 0];
                for (let i = 0; i < d.length; i += 4) for (let k = 0; k < 3; k++) m[k] += d[i + k] * 4 / d.length;
                return m;
            };
            const poster = await createImageBitmap(await (await fetch(v.poster)).blob());
            done([mean(v, v.videoWidth, v.videoHeight), mean(poster, poster.width, poster.height)]);
        };"#;
    let means = browser.async_script(colours);
    for channel in 0..3 {
        let (video, poster) = (&means[0][channel], &means[1][channel]);
        let (video, poster) = (video.as_f64().expect("a mean"), poster.as_f64().expect("a mean"));
        assert!((video - poster).abs() < 4.0, "colours differ between video and poster: {means}");
    }
    browser.screenshot(&screenshots().join(format!("{name}-clip.png")));
    open_view(browser, "history");
    let listed = "return document.querySelectorAll('#clips a[download]').length";
    wait("the clip is listed", STEP_MAX, || browser.script(listed).as_u64() > Some(0));
}

#[test]
fn a_player_types_plays_and_watches_a_clip() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser");
    let browser = Browser::start(scratch.path());
    if let Ok(base) = std::env::var("GAMEGEND_TEST_URL") {
        play(&browser, &base, "daemon");
        return;
    }
    let mut api = Api::start("page");
    let peer = api.worker_up(Duration::from_millis(10));
    let base = format!("http://{}/", api.address);
    play(&browser, &base, "page");
    let opened = peer.asked.lock().expect("no panic").opened[0].clone();
    assert_eq!(opened.prompt, "a green meadow with mountains under a clear sky");
    let told = peer.asked.lock().expect("no panic").instructions.last().cloned().expect("an instruction");
    assert_eq!(told.1.as_deref(), Some("a storm begins"));
    clip(&browser, "page");

    // The worker is killed while the page plays: it says so and goes on.
    type_prompt(&browser, "a canyon");
    browser.click(&browser.find("#play"));
    // The number on the page may still be the clip's: the worker must have heard of this world first.
    let canyon = || peer.asked.lock().expect("no panic").opened.last().is_some_and(|o| o.prompt == "a canyon");
    wait("the world opens", STEP_MAX, canyon);
    wait("its stream is connected", STEP_MAX, || text(&browser, "state") == "connected");
    wait("frames arrive", STEP_MAX, || frame_number(&browser) > 4);
    peer.kill();
    api.worker_down("worker 1 was killed by signal 9", true);
    wait("the page says recovering", STEP_MAX, || text(&browser, "state") == "recovering");
    browser.screenshot(&screenshots().join("page-recovering.png"));
    let _peer = api.worker_up(Duration::ZERO);
    wait("the page goes on", STEP_MAX, || text(&browser, "state") == "connected");

    // On a phone.
    browser.size(420, 860);
    browser.settle();
    let wide = "return document.documentElement.scrollWidth > window.innerWidth";
    assert_eq!(browser.script(wide), Value::Bool(false), "nothing is wider than a phone");
    browser.screenshot(&screenshots().join("page-phone.png"));
    browser.click(&browser.find("#cancel"));
    assert_eq!(browser.errors(), Vec::<String>::new(), "the console is clean");
}

#[test]
fn a_player_plays_the_real_daemon() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser-daemon");
    let browser = Browser::start(scratch.path());
    let host = daemon::Daemon::start("browser", "cpu");
    play(&browser, &format!("http://{}/", host.address), "daemon");
}
