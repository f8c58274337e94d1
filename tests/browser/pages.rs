//! The pages as somebody sees them: each view at three widths, in the dark and in the light; the rules of WCAG by axe;
//! the keyboard alone; how fast and how light the page is.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::{Api, Scratch};
use super::webdriver::{Browser, missing};
use super::{FIRST_FRAME_MAX, STEP_MAX, daemon, frame_number, open_view, screenshots, text, type_prompt, wait};

/// Name, width and height: a desk, a tablet, a phone.
const SCREENS: [(&str, u32, u32); 3] = [("desk", 1440, 900), ("tablet", 900, 1180), ("phone", 390, 844)];
const TAB: &str = "\u{e004}";
const RETURN: &str = "\u{e007}";
const SPACE: &str = " ";

/// The rules of axe as one script, from the package that `tools/python` installs.
fn axe() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/lib");
    let versions = std::fs::read_dir(root).ok()?;
    let script = |entry: std::fs::DirEntry| {
        std::fs::read_to_string(entry.path().join("site-packages/axe_playwright_python/axe.min.js")).ok()
    };
    versions.flatten().find_map(script)
}

/// What axe has against the page as it is now, level A and AA.
fn violations(browser: &Browser, axe: &str) -> Vec<String> {
    browser.script(&format!("{axe}; return null"));
    let run = "const done = arguments[arguments.length - 1];
        axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']}).then((r) => done(
            r.violations.flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.target} ${n.failureSummary}`))))";
    let found = browser.async_script(run);
    found.as_array().expect("a list").iter().map(|v| v.as_str().unwrap_or("").to_string()).collect()
}

fn theme(browser: &Browser, name: &str) {
    let set = format!(
        "const s = document.getElementById('set-theme'); s.value = {name:?}; s.dispatchEvent(new Event('change'));
         return document.documentElement.dataset.theme"
    );
    assert_eq!(browser.script(&set), json!(name));
}

#[test]
fn every_view_at_every_width_is_sound_and_passes_axe() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let axe = axe();
    if axe.is_none() {
        daemon::skip("the rules of axe are not there; tools/python says why");
    }
    let scratch = Scratch::new("browser-pages");
    let browser = Browser::start(scratch.path());
    let mut api = Api::start("pages");
    let _peer = api.worker_up(Duration::from_millis(2));
    // The page knows itself by its address: what it shows of the history was made from there.
    let client = api.network();
    let worlds = [
        ("third person view. a red knight in a green meadow", 3),
        ("a beach at sunset, with palm trees", 9),
        ("a canyon", 17),
        ("a snowy forest at night, with fog between the trees and a light far away", 22),
    ];
    for (prompt, seed) in worlds {
        let body = json!({"prompt": prompt, "width": 320, "height": 192, "frames": 30, "seed": seed});
        let id = client.generate(&body).id;
        super::support::eventually("it is done", || client.status(&id).links.poster.is_some());
    }
    browser.size(1440, 900);
    browser.go(&format!("http://{}/", api.address));
    wait("the daemon is ready", FIRST_FRAME_MAX, || text(&browser, "state") == "ready");
    let mut found = Vec::new();
    for (screen, width, height) in SCREENS {
        browser.size(width, height);
        for shade in ["dark", "light"] {
            theme(&browser, shade);
            for view in ["generate", "control", "history", "settings"] {
                open_view(&browser, view);
                if view == "history" {
                    let loaded = "const i = [...document.querySelectorAll('#clips img')];
                                  return i.length > 0 && i.every((x) => x.complete && x.naturalWidth > 0)";
                    wait("the posters are there", STEP_MAX, || browser.script(loaded) == Value::Bool(true));
                }
                browser.settle();
                browser.screenshot(&screenshots().join(format!("{view}-{screen}-{shade}.png")));
                let wide = "return [...document.querySelectorAll('body *')].filter((e) => e.offsetWidth > 1
                    && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.id || e.className || e.tagName)";
                assert_eq!(browser.script(wide), json!([]), "{view} is wider than a {screen}");
                if let Some(axe) = &axe {
                    let at = |v: String| format!("{view} on a {screen}, {shade}: {v}");
                    found.extend(violations(&browser, axe).into_iter().map(at));
                }
            }
        }
    }
    browser.size(1440, 900);
    for (button, dialog) in [("help", "helping"), ("profile", "login")] {
        browser.click(&browser.find(&format!("#{button}")));
        browser.settle();
        browser.screenshot(&screenshots().join(format!("{dialog}-desk.png")));
        if let Some(axe) = &axe {
            found.extend(violations(&browser, axe).into_iter().map(|v| format!("{dialog}: {v}")));
        }
        browser.script(&format!("document.getElementById({dialog:?}).close('close'); return null"));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert_eq!(browser.errors(), Vec::<String>::new(), "the console is clean");
}

/// Id of the element with the focus, or what it is.
fn focused(browser: &Browser) -> String {
    let who = "const e = document.activeElement;
        return e === document.body ? 'BODY' : e.id || e.dataset.view || e.className || e.tagName";
    browser.script(who).as_str().unwrap_or("").to_string()
}

/// Presses Tab until an element has the focus; every stop on the way must be visible and show that it is focused.
fn tab_to(browser: &Browser, id: &str) {
    let visible = "const e = document.activeElement, r = e.getBoundingClientRect(), s = getComputedStyle(e);
        return r.width > 0 && r.height > 0 && (s.outlineStyle !== 'none' || e.matches('.poster, input[type=file]'))";
    for _ in 0..60 {
        browser.press(TAB);
        let now = focused(browser);
        if now == "BODY" {
            continue;
        }
        assert_eq!(browser.script(visible), Value::Bool(true), "the focus cannot be seen at {now}");
        if now == id {
            return;
        }
    }
    panic!("Tab does not lead to {id}");
}

#[test]
fn the_keyboard_alone_plays_directs_and_finds_the_history() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser-keys");
    let browser = Browser::start(scratch.path());
    let mut api = Api::start("keyboard");
    let peer = api.worker_up(Duration::from_millis(5));
    browser.size(1440, 900);
    browser.go(&format!("http://{}/", api.address));
    wait("the daemon is ready", FIRST_FRAME_MAX, || text(&browser, "state") == "ready");
    browser.press(TAB);
    let skip = "return document.activeElement.classList.contains('skip')";
    assert_eq!(browser.script(skip), Value::Bool(true), "the first stop leads past the menu");
    // An empty prompt is refused in words, and the focus is where they are about.
    tab_to(&browser, "play");
    browser.press(RETURN);
    assert_eq!(text(&browser, "prompt-error"), "Say what the world looks like.");
    assert_eq!(focused(&browser), "prompt");
    browser.press("a canyon at dawn");
    tab_to(&browser, "play");
    browser.press(RETURN);
    wait("frames arrive", FIRST_FRAME_MAX, || frame_number(&browser) > 4);
    assert_eq!(focused(&browser), "viewport", "a player can walk at once");
    browser.hold_keys(&["w"], || {
        let held = "return document.querySelector('.key-w').classList.contains('held')";
        wait("W is held", STEP_MAX, || browser.script(held) == Value::Bool(true));
    });
    tab_to(&browser, "weather");
    browser.press("sn");
    wait("it snows", STEP_MAX, || {
        peer.asked.lock().expect("no panic").environments.last().is_some_and(|e| e.weather.as_deref() == Some("snow"))
    });
    tab_to(&browser, "instruction");
    browser.press("a storm begins");
    browser.press(RETURN);
    wait("it is told", STEP_MAX, || {
        let asked = peer.asked.lock().expect("no panic");
        asked.instructions.last().is_some_and(|i| i.1.as_deref() == Some("a storm begins"))
    });
    tab_to(&browser, "cancel");
    browser.press(SPACE);
    wait("the session ends", STEP_MAX, || text(&browser, "state") == "ready");
    tab_to(&browser, "history");
    browser.press(RETURN);
    let cards = "return document.querySelectorAll('#clips .item').length";
    wait("the world is in the history", STEP_MAX, || browser.script(cards).as_u64() == Some(1));
    tab_to(&browser, "help");
    browser.press(RETURN);
    assert_eq!(browser.script("return document.getElementById('helping').open"), Value::Bool(true));
    browser.press("\u{e00c}");
    assert_eq!(browser.script("return document.getElementById('helping').open"), Value::Bool(false));
    assert_eq!(focused(&browser), "help", "the focus is back where it was");
    assert_eq!(browser.errors(), Vec::<String>::new(), "the console is clean");
}

#[test]
fn the_page_is_interactive_within_a_second_and_smooth_while_it_streams() {
    if let Some(reason) = missing() {
        return daemon::skip(&reason);
    }
    let scratch = Scratch::new("browser-speed");
    let browser = Browser::start(scratch.path());
    let mut api = Api::start("speed");
    let _peer = api.worker_up(Duration::ZERO);
    browser.size(1440, 900);
    let base = format!("http://{}/", api.address);
    browser.go(&base);
    wait("it is ready", STEP_MAX, || browser.script("return document.documentElement.dataset.ready") == json!("true"));
    let load =
        "const n = performance.getEntriesByType('navigation')[0], all = performance.getEntriesByType('resource');
        const ours = all.filter((e) => e.name.startsWith(location.origin));
        return {interactive: n.domContentLoadedEventEnd, elsewhere: all.length - ours.length,
                bytes: ours.reduce((s, e) => s + e.encodedBodySize, n.encodedBodySize)}";
    let measured = browser.script(load);
    println!("the page: {measured}");
    assert!(measured["interactive"].as_f64().is_some_and(|ms| ms < 1000.0), "{measured}");
    assert!(measured["bytes"].as_u64().is_some_and(|b| b < 100 * 1024), "{measured}");
    assert_eq!(measured["elsewhere"], json!(0), "nothing comes from elsewhere");
    type_prompt(&browser, "a meadow");
    browser.click(&browser.find("#play"));
    wait("frames arrive", FIRST_FRAME_MAX, || frame_number(&browser) > 4);
    let smooth = "const done = arguments[arguments.length - 1], times = [];
        const step = (now) => { times.push(now); times.length < 181 ? requestAnimationFrame(step)
            : done({rate: 180000 / (times[180] - times[0]),
                    late: times.slice(1).filter((t, i) => t - times[i] > 50).length}) };
        requestAnimationFrame(step)";
    let rate = browser.async_script(smooth);
    println!("animation frames while the stream runs: {rate}");
    // The test machine's two processors run the daemon, the worker, the browser and its software renderer.
    assert!(rate["rate"].as_f64().is_some_and(|r| r > 45.0), "{rate}");
    browser.click(&browser.find("#cancel"));
}
