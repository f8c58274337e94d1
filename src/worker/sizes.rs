//! Whose pictures become smaller when the device has too much to do, and whose come back: policy only.
//!
//! Who needs the most work at the size of now goes first, among equals who came last; so large pictures become as small
//! as the others before those lose anything. What was lost last comes back first.

use crate::proto::limits;
use crate::proto::link::SessionNumber;

/// Sizes that a session of `asked` pixels may have, the one that was asked for first: parts of its sides, as far as
/// they are legal, not far below what the model was trained on (`trained_px` pixels at the least), and each needs
/// clearly less `work` than the one before.
pub fn ladder(asked: (u32, u32), trained_px: u32, mut work: impl FnMut((u32, u32)) -> f64) -> Vec<(u32, u32)> {
    let (mut sizes, mut least) = (vec![asked], work(asked));
    let px_min = limits::SIZE_TRAINED_MIN * f64::from(trained_px);
    for eighths in limits::SIZE_EIGHTHS {
        let size = (even(asked.0, eighths), even(asked.1, eighths));
        let legal = limits::WIDTH_PX.contains(&size.0) && limits::HEIGHT_PX.contains(&size.1);
        if !legal || f64::from(size.0 * size.1) < px_min {
            break;
        }
        let needs = work(size);
        if needs <= limits::SIZE_WORK_MAX * least {
            sizes.push(size);
            least = needs;
        }
    }
    sizes
}

fn even(side: u32, eighths: u32) -> u32 {
    (side * eighths / 8) & !1
}

/// A session that could lose size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub session: SessionNumber,
    /// Operations a second that it needs now.
    pub work: f64,
}

/// Who lost size, a part at a time.
#[derive(Clone, Debug, Default)]
pub struct Sizes {
    /// In the order in which it was lost; a session is there once for every part.
    lost: Vec<SessionNumber>,
}

impl Sizes {
    /// How many parts a session has lost: its place in its [`ladder`].
    pub fn rung(&self, session: SessionNumber) -> usize {
        self.lost.iter().filter(|lost| **lost == session).count()
    }

    /// Number of sessions that have lost any.
    pub fn sessions(&self) -> usize {
        let mut all = self.lost.clone();
        all.sort_unstable();
        all.dedup();
        all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lost.is_empty()
    }

    /// Who loses a part next: the one with the most work, among equals the newest.
    pub fn next(candidates: &[Candidate]) -> Option<SessionNumber> {
        let first = |a: &&Candidate, b: &&Candidate| a.work.total_cmp(&b.work).then(a.session.cmp(&b.session));
        candidates.iter().max_by(first).map(|candidate| candidate.session)
    }

    pub fn lose(&mut self, session: SessionNumber) {
        self.lost.push(session);
    }

    /// Who gets a part back next.
    pub fn last(&self) -> Option<SessionNumber> {
        self.lost.last().copied()
    }

    /// [`last`](Self::last) has its part back.
    pub fn give_back(&mut self) {
        self.lost.pop();
    }

    /// A session is gone, or stays as it is.
    pub fn forget(&mut self, session: SessionNumber) {
        self.lost.retain(|lost| *lost != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixels(size: (u32, u32)) -> f64 {
        f64::from(size.0 * size.1)
    }

    #[test]
    fn a_ladder_has_legal_sizes_that_need_less_each() {
        let sizes = ladder((1280, 720), 0, pixels);
        assert_eq!(sizes, [(1280, 720), (960, 540), (640, 360), (480, 270), (320, 180)]);
        assert_eq!(ladder((1920, 1080), 0, pixels)[3], (720, 404), "sides are even");
        assert_eq!(ladder((128, 72), 0, pixels), [(128, 72)], "54 rows are none that a session may have");
        // Pictures of half the side whose latents are as many: of no use by themselves.
        let coarse = |size: (u32, u32)| if size.0 >= 640 { 100.0 } else { pixels(size) / 2000.0 };
        assert_eq!(ladder((1280, 720), 0, coarse), [(1280, 720), (480, 270), (320, 180)]);
        // A model that was trained on 320 x 192 pixels and more.
        assert_eq!(ladder((1280, 720), 320 * 192, coarse), [(1280, 720), (480, 270), (320, 180)]);
        assert_eq!(ladder((640, 360), 320 * 192, pixels), [(640, 360), (480, 270), (320, 180)]);
        assert_eq!(ladder((320, 192), 320 * 192, pixels), [(320, 192)]);
    }

    #[test]
    fn the_most_work_goes_first_and_among_equals_the_newest() {
        let mut sizes = Sizes::default();
        let asked = [(1, 5.0), (2, 9.0), (3, 9.0), (4, 1.0)];
        let mut order = Vec::new();
        for _ in 0..6 {
            // Each part lost halves the work.
            let now =
                |(session, work): (u64, f64)| Candidate { session, work: work / f64::from(1 << sizes.rung(session)) };
            let session = Sizes::next(&asked.map(now)).expect("there is one");
            sizes.lose(session);
            order.push(session);
        }
        assert_eq!(order, [3, 2, 1, 3, 2, 1], "the smallest one loses nothing while others are larger");
        assert_eq!((sizes.rung(3), sizes.rung(1), sizes.sessions()), (2, 2, 3));
        let mut back = Vec::new();
        while let Some(session) = sizes.last() {
            sizes.give_back();
            back.push(session);
        }
        order.reverse();
        assert_eq!(back, order);
        assert!(sizes.is_empty() && Sizes::next(&[]).is_none());
    }

    #[test]
    fn who_leaves_is_forgotten() {
        let mut sizes = Sizes::default();
        [1, 2, 1].into_iter().for_each(|session| sizes.lose(session));
        sizes.forget(1);
        assert_eq!((sizes.rung(1), sizes.last(), sizes.sessions()), (0, Some(2), 1));
    }
}
