use super::*;
use crate::compute::reference::ReferenceExecutor;
use crate::compute::testing;

const TOLERANCE: f32 = 1e-4;

#[test]
fn every_case_matches_the_reference() {
    let cases = testing::cases();
    for threads in [1, 2, 3] {
        let mut reference = ReferenceExecutor::new(Precision::F32);
        let mut cpu = CpuExecutor::new(threads).expect("threads can be started");
        let (count, worst) = testing::check(&cases, &mut reference, &mut cpu, Precision::F32, TOLERANCE)
            .unwrap_or_else(|failures| panic!("{threads} threads:\n{failures}"));
        println!("{count} cases on {threads} threads, worst deviation {worst:e}");
    }
}
