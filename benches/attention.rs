//! Attention in every way that it can be cut up, at the shapes that matter.
//!
//!     cargo bench --bench attention -- --device vulkan:0

use std::process::ExitCode;

use gamegend::compute::gpu::{AttentionShape, GpuExecutor, GpuOptions, RowCut};
use gamegend::compute::{Executor, Precision};

const SHAPES: &[AttentionShape] = &[
    (26, 3600, 3600, 16, 72),
    (4, 3600, 3600, 16, 64),
    (26, 1590, 1590, 16, 72),
    (26, 320, 320, 16, 72),
    (26, 3600, 300, 16, 72),
    (16, 240, 240, 6, 64),
    (16, 240, 40, 6, 64),
    (1, 240, 240, 6, 64),
];

fn cuts() -> Vec<RowCut> {
    let mut all = Vec::new();
    let of = |subgroups, bands, keys, stages, ahead, queries_stay, turned| RowCut {
        subgroups,
        bands,
        keys,
        stages,
        ahead,
        queries_stay,
        turned,
    };
    for (subgroups, bands, keys) in [(4, 2, 64), (4, 2, 32), (4, 1, 64), (4, 1, 128), (8, 1, 64), (8, 1, 128), (2, 2, 64), (8, 2, 64), (4, 2, 128)] {
        for queries_stay in [false, true] {
            for (stages, ahead) in [(1, false), (1, true), (2, true)] {
                for turned in [false, true] {
                    all.push(of(subgroups, bands, keys, stages, ahead, queries_stay, turned));
                }
            }
        }
    }
    all
}

fn run(small: bool) -> Result<(), Box<dyn std::error::Error>> {
    let options = GpuOptions { precision: Some(Precision::F16), tune: Some(false), ..GpuOptions::default() };
    let mut x = GpuExecutor::open_with(0, &options)?;
    println!("{} {} layout {}", x.device().name, x.device().detail, x.layout());
    let shapes: &[AttentionShape] = if small { &[(2, 37, 101, 2, 72), (1, 70, 64, 2, 64)] } else { SHAPES };
    let of = |subgroups, bands, keys, stages, ahead, queries_stay, turned| RowCut {
        subgroups,
        bands,
        keys,
        stages,
        ahead,
        queries_stay,
        turned,
    };
    let few = vec![of(2, 2, 32, 2, true, true, true), of(4, 1, 32, 1, true, false, true), of(2, 1, 32, 1, false, true, false)];
    for &shape in shapes {
        let (g, lq, lk, heads, hd) = shape;
        let flops = 4.0 * (g * lq * lk * heads * hd) as f64;
        let mut all = x.attention_times(&[shape], &if small { few.clone() } else { cuts() })?.swap_remove(0);
        all.sort_by_key(|t| t.time);
        println!("attention {g}x{lq}x{lk} {heads}x{hd}");
        for (i, t) in all.iter().enumerate().filter(|(i, t)| *i < 6 || t.cut.is_none() || t.deviation > 4e-3 || small || g * lq == 26 * 3600 && lk == 3600) {
            let us = t.time.as_secs_f64() * 1e6;
            let what = t.cut.map_or("shared scores".to_string(), |c| {
                format!("{}x{} keys {} stages {}{}{}", c.subgroups, c.bands, c.keys, c.stages, if c.ahead { " ahead" } else { "" }, if c.queries_stay { " q" } else { "" }) + if c.turned { " turned" } else { "" }
            });
            let told = |part: &str| t.statistics.iter().find(|(n, _)| n.contains(part)).map_or(0, |(_, v)| *v);
            let (registers, spilled) = (told("egister"), told("tack"));
            if i == 0 && g == 26 && lk == 3600 {
                println!("{:?}", t.statistics);
            }
            let what = format!("{what} r{registers} s{spilled}");
            println!(" {i:>2} {us:>8.1}us {:>5.1}TF {:.0e} {what}", flops / us / 1e6, t.deviation);
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(std::env::args().any(|a| a == "--small")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("attention: {e}");
            ExitCode::FAILURE
        }
    }
}
