//! The text encoder: T5 v1.1's encoder (arXiv 1910.10683; gated-gelu feed-forward), whose features condition every
//! frame (GameGen-X, arXiv 2411.00769, section 3.2).
//!
//! L tokens, padded to one of [`TextConfig::lengths`]; D `d_model`; H heads of `d_kv`; F `d_ff`.

use super::config::TextConfig;
use super::net::{Fuse, Net};
use super::weights::{Expected, HostTensors, Kind};
use crate::compute::op::{Act, GatedGelu};
use crate::compute::{ComputeError, Param, Storage, View, WeightSet};

/// Folder of the weights, and the first part of their names on a device.
pub const COMPONENT: &str = "text_encoder";
/// Name of the weight file without its ending.
pub const STEM: &str = "model";

const RELATIVE_BIAS: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";

/// The tensors of the component's file.
pub fn expected(c: &TextConfig) -> Vec<Expected> {
    let (d, inner) = (c.d_model, c.num_heads * c.d_kv);
    let matrix = |name: String, dims: [usize; 2]| Expected::new(name, &dims, Kind::Matrix);
    let mut all = vec![
        Expected::new("shared.weight", &[c.vocab_size, d], Kind::Host),
        Expected::new(RELATIVE_BIAS, &[c.relative_attention_num_buckets, c.num_heads], Kind::Host),
    ];
    for i in 0..c.num_layers {
        let (a, f) = (format!("encoder.block.{i}.layer.0"), format!("encoder.block.{i}.layer.1"));
        all.push(Expected::new(format!("{a}.layer_norm.weight"), &[d], Kind::Vector));
        for part in ["q", "k", "v"] {
            all.push(matrix(format!("{a}.SelfAttention.{part}.weight"), [inner, d]));
        }
        all.push(matrix(format!("{a}.SelfAttention.o.weight"), [d, inner]));
        all.push(Expected::new(format!("{f}.layer_norm.weight"), &[d], Kind::Vector));
        all.push(matrix(format!("{f}.DenseReluDense.wi_0.weight"), [c.d_ff, d]));
        all.push(matrix(format!("{f}.DenseReluDense.wi_1.weight"), [c.d_ff, d]));
        all.push(matrix(format!("{f}.DenseReluDense.wo.weight"), [d, c.d_ff]));
    }
    all.push(Expected::new("encoder.final_layer_norm.weight", &[d], Kind::Vector));
    all
}

/// Adds the position bias [H, L, L] of every length, spread out from its buckets, and returns the table of words
/// [vocabulary, D].
pub fn derive(c: &TextConfig, mut host: HostTensors, set: &mut WeightSet) -> Vec<f32> {
    let table = host.remove(RELATIVE_BIAS).unwrap_or_default(); // [buckets, H]
    for l in c.lengths() {
        let mut bias = Vec::with_capacity(c.num_heads * l * l);
        for head in 0..c.num_heads {
            for query in 0..l {
                for key in 0..l {
                    bias.push(table[bucket(c, query, key) * c.num_heads + head]);
                }
            }
        }
        set.insert(attention_bias(l), &[c.num_heads, l, l], Storage::Vector, bias);
    }
    host.remove("shared.weight").unwrap_or_default()
}

/// Name of the position bias for texts of `l` tokens.
fn attention_bias(l: usize) -> String {
    format!("{COMPONENT}.encoder.attention_bias.{l}")
}

/// Bidirectional bucket of the distance from `query` to `key` (T5, section 2.1): one a distance while it is small, then
/// logarithmic ones up to the largest distance.
fn bucket(c: &TextConfig, query: usize, key: usize) -> usize {
    let half = c.relative_attention_num_buckets / 2;
    let exact = half / 2;
    let distance = query.abs_diff(key);
    let side = if key > query { half } else { 0 };
    if distance < exact {
        return side + distance;
    }
    let largest = c.relative_attention_max_distance as f32 / exact as f32;
    let log_ratio = (distance as f32 / exact as f32).ln() / largest.ln();
    side + (exact + (log_ratio * (half - exact) as f32) as usize).min(half - 1)
}

/// Rows of the table of words for `ids`, padded with word 0 to `length` rows: [L, D].
pub fn embed(c: &TextConfig, table: &[f32], ids: &[u32], length: usize) -> Vec<f32> {
    let padded = ids.iter().copied().chain(std::iter::repeat(0)).take(length);
    padded.flat_map(|id| &table[id as usize * c.d_model..][..c.d_model]).copied().collect()
}

/// Features [L, D] of a text given as rows of the table of words [L, D], L one of [`TextConfig::lengths`]. Only the
/// first `count` rows mean something; they do not depend on the rest.
pub fn encode(net: &mut Net, c: &TextConfig, words: View, count: Param) -> Result<View, ComputeError> {
    net.at(COMPONENT, |net| {
        net.probe("embedding", words)?;
        let h = net.temp("hidden", words.rows, words.cols); // [L, D]
        net.push("hidden", crate::compute::op::Copy { x: words, y: h })?;
        for i in 0..c.num_layers {
            net.at(&format!("encoder.block.{i}.layer.0"), |net| attention(net, c, h, count))?;
            net.at(&format!("encoder.block.{i}.layer.1"), |net| feed_forward(net, c, h))?;
            net.probe(&format!("block.{i}"), h)?;
        }
        let y = net.weighted_norm("encoder.final_layer_norm", h, Act::None, c.layer_norm_epsilon)?; // [L, D]
        net.probe("output", y)?;
        Ok(y)
    })
}

/// Pre-norm attention, added to `h` [L, D].
fn attention(net: &mut Net, c: &TextConfig, h: View, count: Param) -> Result<(), ComputeError> {
    let x = net.weighted_norm("layer_norm", h, Act::None, c.layer_norm_epsilon)?; // [L, D]
    let q = net.linear("SelfAttention.q", x, Fuse::default())?; // [L, H * d_kv]
    let k = net.linear("SelfAttention.k", x, Fuse::default())?; // [L, H * d_kv]
    let v = net.linear("SelfAttention.v", x, Fuse::default())?; // [L, H * d_kv]
    let bias = net.builder().weight(&attention_bias(h.rows))?; // [H, L, L]
    let scale = if c.scale_attention { 1.0 / (c.d_kv as f32).sqrt() } else { 1.0 };
    let y = net.attention(q, (k, v), c.num_heads, scale, Some(count), Some(bias))?; // [L, H * d_kv]
    net.linear("SelfAttention.o", y, Fuse::add_to(h, None))?; // [L, D]
    Ok(())
}

/// Pre-norm feed-forward, added to `h` [L, D].
fn feed_forward(net: &mut Net, c: &TextConfig, h: View) -> Result<(), ComputeError> {
    let x = net.weighted_norm("layer_norm", h, Act::None, c.layer_norm_epsilon)?; // [L, D]
    let a = net.linear("DenseReluDense.wi_0", x, Fuse::default())?; // [L, F]
    let b = net.linear("DenseReluDense.wi_1", x, Fuse::default())?; // [L, F]
    net.push("DenseReluDense.gelu", GatedGelu { a, b, y: a })?;
    net.linear("DenseReluDense.wo", a, Fuse::add_to(h, None))?; // [L, D]
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_grow_with_distance_and_know_the_side() {
        let c: TextConfig = serde_json::from_str(
            r#"{"model_type":"t5","vocab_size":8,"d_model":4,"d_kv":4,"d_ff":4,"num_layers":1,"num_heads":1,
            "relative_attention_num_buckets":32,"relative_attention_max_distance":128,"feed_forward_proj":"gated-gelu",
            "layer_norm_epsilon":1e-6,"max_length":300,"scale_attention":false}"#,
        )
        .expect("every field is there");
        let right: Vec<usize> = [0, 1, 7, 8, 16, 127, 128, 299].iter().map(|&d| bucket(&c, 0, d)).collect();
        assert_eq!(right, [0, 17, 23, 24, 26, 31, 31, 31]);
        assert_eq!(bucket(&c, 7, 0), 7);
        assert_eq!(bucket(&c, 299, 0), 15);
    }
}
