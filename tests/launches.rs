//! How many launches and barriers a tick takes in the matrix tier: a change that adds some must say so here.

use std::sync::Arc;

use gamegend::compute::Precision;
use gamegend::compute::gpu::{Launches, launches};
use gamegend::model::Model;
use gamegend::model::plans::{PlanContext, tick_plan};
use gamegend::model::state::{FrameSize, SessionLayout};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/gamegen-x-mini");

fn tick(seats: usize) -> Launches {
    let model = Model::load(MODEL.as_ref()).expect("the model of the repository");
    let (size, steps, precision) = (FrameSize { width: 1280, height: 720 }, 2, Precision::F16);
    let layout = SessionLayout::new(model.config(), size, steps, precision);
    let context = PlanContext { model: &model, layout: &layout, size, precision, probing: false, seats };
    let plan = tick_plan(&context, steps as u32, false, None).expect("a plan");
    launches(&Arc::clone(&plan.recorded.plan))
}

#[test]
fn a_tick_is_no_longer_than_this() {
    assert_eq!(
        [tick(1), tick(16)],
        [Launches { dispatches: 320, barriers: 311 }, Launches { dispatches: 336, barriers: 313 }]
    );
}
