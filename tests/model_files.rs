//! Model folders that are damaged or lie: every one is refused with an error that names what is wrong.
//!
//! The folders here are tiny ones of random weights, written by the test itself.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use gamegend::model::config::Config;
use gamegend::model::weights::Expected;
use gamegend::model::{Model, ModelError, instructnet, msdit, t5, vae};
use serde_json::{Value, json};

/// A folder of its own that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("gamegend-model-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the temporary folder is writable");
        Folder(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("it is inside the folder")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.join(name)).expect("the file was written before")
    }

    /// Changes one field of a JSON file; `Value::Null` removes it.
    fn set(&self, name: &str, field: &str, value: Value) {
        let mut json: Value = serde_json::from_slice(&self.read(name)).expect("it is JSON");
        match value {
            Value::Null => drop(json.as_object_mut().expect("an object").remove(field)),
            value => json[field] = value,
        }
        self.write(name, json.to_string());
    }

    fn load(&self) -> Result<(), ModelError> {
        Model::load(&self.0).map(drop)
    }

    /// The message of the error with its causes.
    fn refusal(&self) -> String {
        let Err(error) = self.load() else { panic!("the folder was accepted") };
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(e) = cause {
            text = format!("{text}: {e}");
            cause = e.source();
        }
        text
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A tensor of a file that is to be written.
#[derive(Clone)]
struct Stored {
    dtype: &'static str,
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Stored>;

/// A safetensors file, written by hand so that it can be wrong.
fn file(tensors: &Tensors) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, t) in tensors {
        let begin = data.len();
        data.extend(&t.bytes);
        header.insert(name.clone(), json!({"dtype": t.dtype, "shape": t.dims, "data_offsets": [begin, data.len()]}));
    }
    with_header(&Value::Object(header).to_string(), &data)
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// Small values for every expected tensor, in f32.
fn stored(expected: &[Expected]) -> Tensors {
    let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) * 1e-3;
    let positive = |name: &str, i: usize| if name == "latents_std" { 1.0 } else { value(i) };
    let tensor = |e: &Expected| {
        let bytes = (0..e.dims.iter().product()).flat_map(|i| positive(&e.name, i).to_le_bytes()).collect();
        (e.name.clone(), Stored { dtype: "F32", dims: e.dims.clone(), bytes })
    };
    expected.iter().map(tensor).collect()
}

const VAE_FILE: &str = "vae/diffusion_pytorch_model.safetensors";
const DIT_FILE: &str = "transformer/diffusion_pytorch_model.safetensors";

/// A folder that loads, with the tensors of two of its files.
fn good(name: &str) -> (Folder, Tensors, Tensors) {
    let folder = Folder::new(name);
    let words = json!({"<pad>": 0, "</s>": 1, "<unk>": 2, "robot": 3});
    let end = json!([{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]);
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "post_processor": {"type": "TemplateProcessing", "single": end, "pair": end,
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    });
    folder.write("tokenizer/tokenizer.json", tokenizer.to_string());
    let vocabulary = json!({"weather": ["clear"], "lighting": ["day"], "effects": ["none"], "perspective": ["third"]});
    let configs = [
        (
            "model_index.json",
            json!({"_class_name": "GameGenX", "name": "tiny", "frame_rate": 24,
            "actions": ["W", "S", "A", "D", "SPACE", "SHIFT"], "steps": [1, 2], "default_steps": 1,
            "sizes": [[64, 64]], "vocabulary": vocabulary, "video_prompts": ["canny"],
            "instruction_parts": {"lighting": "l {lighting}", "weather": "w {weather}", "effects": "e {effects}"}}),
        ),
        (
            "text_encoder/config.json",
            json!({"model_type": "t5", "vocab_size": 4, "d_model": 8, "d_kv": 4, "d_ff": 8,
            "num_layers": 1, "num_heads": 2, "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128, "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6,
            "max_length": 8, "scale_attention": true}),
        ),
        (
            "vae/config.json",
            json!({"_class_name": "AutoencoderKLCausal3D", "latent_channels": 4, "temporal_factor": 1,
            "patch_size": 4, "spatial_factor": 8, "encoder_channels": [4, 8], "encoder_blocks": [1, 1],
            "decoder_channels": [8, 4], "decoder_blocks": [1, 1], "norm_eps": 1e-6, "two_fold_from": 8192}),
        ),
        (
            "transformer/config.json",
            json!({"_class_name": "MSDiT", "latent_channels": 4, "hidden_size": 8,
            "num_layers": 2, "head_dim": 4, "mlp_ratio": 2, "cross_attention_every": 2, "text_dim": 8,
            "time_frequencies": 4, "position_frequencies": 4, "rope_spatial_base": 100.0,
            "rope_temporal_base": 1000.0, "window": 4, "norm_eps": 1e-6}),
        ),
        (
            "instructnet/config.json",
            json!({"_class_name": "InstructNet", "action_count": 6, "action_dim": 8,
            "every": 2, "hidden_size": 8, "num_layers": 2, "text_dim": 8, "latent_channels": 4,
            "video_prompts": ["canny", "pose"]}),
        ),
        (
            "scheduler/scheduler_config.json",
            json!({"_class_name": "FlowMatchEulerShortcut", "context_noise": 0.05,
            "guidance": 1.0, "first_frame_steps": 2, "first_frame_shortcut": true}),
        ),
    ];
    for (name, value) in configs {
        folder.write(name, value.to_string());
    }
    let c = Config::load(&folder.0).expect("the configuration is right");
    let (vae, dit) = (stored(&vae::expected(&c.vae)), stored(&msdit::expected(&c.msdit)));
    folder.write("text_encoder/model.safetensors", file(&stored(&t5::expected(&c.text))));
    let instruct = stored(&instructnet::expected(&c.instruct, c.msdit.head_dim));
    folder.write("instructnet/diffusion_pytorch_model.safetensors", file(&instruct));
    folder.write(VAE_FILE, file(&vae));
    folder.write(DIT_FILE, file(&dit));
    folder.load().expect("the folder is right");
    (folder, vae, dit)
}

/// The error must have all these parts.
#[track_caller]
fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn missing_files_are_named() {
    let all = ["model_index.json", "tokenizer/tokenizer.json", "vae/config.json", VAE_FILE, DIT_FILE];
    for name in all {
        let (folder, _, _) = good("missing");
        fs::remove_file(folder.0.join(name)).expect("it was there");
        assert_names(&folder.refusal(), &["cannot read", name]);
    }
    let nowhere = Model::load(Path::new("/nonexistent/model")).map(drop).expect_err("there is no such folder");
    assert_names(&nowhere.to_string(), &["cannot read /nonexistent/model/model_index.json"]);
}

#[test]
fn configuration_fields_are_checked() {
    let (folder, _, _) = good("fields");
    let parts = json!({"lighting": "{lighting}", "weather": "weather", "effects": "{effects}"});
    let cases = [
        ("transformer/config.json", "num_layers", json!(0), vec!["num_layers", "0", "1..=128"]),
        ("transformer/config.json", "num_layers", json!(-3), vec!["transformer/config.json", "-3"]),
        ("transformer/config.json", "hidden_size", json!(9), vec!["hidden_size", "9", "multiple of head_dim 4"]),
        ("transformer/config.json", "text_dim", json!(16), vec!["text_dim", "16", "8"]),
        ("transformer/config.json", "windows", json!(16), vec!["transformer/config.json", "windows"]),
        ("transformer/config.json", "window", Value::Null, vec!["transformer/config.json", "window"]),
        ("vae/config.json", "spatial_factor", json!(32), vec!["spatial_factor", "32", "8"]),
        ("vae/config.json", "temporal_factor", json!(2), vec!["temporal_factor", "2", "1"]),
        ("vae/config.json", "decoder_channels", json!([8]), vec!["decoder_channels", "2 entries"]),
        ("vae/config.json", "encoder_channels", json!([4, 1 << 30]), vec!["encoder_channels", "1..=16384"]),
        ("text_encoder/config.json", "model_type", json!("bert"), vec!["model_type", "bert", "t5"]),
        ("text_encoder/config.json", "vocab_size", json!(3), vec!["tokenizer", "ids up to 3"]),
        ("model_index.json", "default_steps", json!(3), vec!["default_steps", "3", "one of [1, 2]"]),
        ("model_index.json", "actions", json!(["W", "X"]), vec!["actions", "X"]),
        ("instructnet/config.json", "action_count", json!(5), vec!["action_count", "5", "6"]),
        ("instructnet/config.json", "latent_channels", json!(5), vec!["latent_channels", "5", "4"]),
        ("instructnet/config.json", "video_prompts", json!(["a", "a"]), vec!["video_prompts", "different names"]),
        ("instructnet/config.json", "video_prompts", json!(["../x"]), vec!["video_prompts", "a-z and _"]),
        ("model_index.json", "video_prompts", json!(["depth"]), vec!["video_prompts", "depth", "canny", "pose"]),
        ("model_index.json", "instruction_parts", parts, vec!["instruction_parts.weather", "{weather}"]),
        ("vae/config.json", "two_fold_from", json!(0), vec!["two_fold_from", "0", "1 or more pixels"]),
        ("scheduler/scheduler_config.json", "first_frame_steps", json!(0), vec!["first_frame_steps", "0", "1..=64"]),
        ("scheduler/scheduler_config.json", "guidance", json!(4.0), vec!["guidance", "4.0", "1.0"]),
        ("scheduler/scheduler_config.json", "context_noise", json!(-1.0), vec!["context_noise", "-1.0", "0..=1"]),
    ];
    for (name, field, value, parts) in cases {
        let before = folder.read(name);
        folder.set(name, field, value);
        assert_names(&folder.refusal(), &parts);
        folder.write(name, before);
    }
    folder.load().expect("everything is as it was");
}

#[test]
fn broken_json_is_refused() {
    let (folder, _, _) = good("json");
    folder.write("vae/config.json", "{");
    assert_names(&folder.refusal(), &["vae/config.json"]);
    let (folder, _, _) = good("json");
    folder.write("tokenizer/tokenizer.json", "{}");
    assert_names(&folder.refusal(), &["tokenizer/tokenizer.json", "unusable"]);
    folder.write("tokenizer/tokenizer.json", vec![b' '; (16 << 20) + 1]);
    assert_names(&folder.refusal(), &["tokenizer/tokenizer.json", "16777217 bytes", "16777216"]);
}

#[test]
fn truncated_weights_are_refused() {
    let (folder, vae, _) = good("truncated");
    let whole = file(&vae);
    for length in [0, 3, 8, 100, whole.len() - 1] {
        folder.write(VAE_FILE, &whole[..length]);
        assert_names(&folder.refusal(), &[VAE_FILE, "cut short"]);
    }
    folder.write(VAE_FILE, [&whole[..], &[0]].concat());
    assert_names(&folder.refusal(), &[VAE_FILE, "too long"]);
}

#[test]
fn a_lying_header_is_refused() {
    let (folder, vae, _) = good("header");
    let mut huge = file(&vae);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    folder.write(VAE_FILE, &huge);
    assert_names(&folder.refusal(), &[VAE_FILE, "header claims 18446744073709551615 bytes", "4194304"]);

    folder.write(VAE_FILE, with_header("{\"latents_mean\":", &[0; 16]));
    assert_names(&folder.refusal(), &[VAE_FILE, "JSON"]);

    let entry = |begin: u64, end: u64| json!({"dtype": "F32", "shape": [4], "data_offsets": [begin, end]});
    let offsets = [(8, 24), (0, 1 << 40), (16, 0), (0, 12), (u64::MAX - 15, u64::MAX)];
    for (begin, end) in offsets {
        folder.write(VAE_FILE, with_header(&json!({"latents_mean": entry(begin, end)}).to_string(), &[0; 16]));
        assert_names(&folder.refusal(), &[VAE_FILE]);
    }
    let overlapping = json!({"latents_mean": entry(0, 16), "latents_std": entry(0, 16)});
    folder.write(VAE_FILE, with_header(&overlapping.to_string(), &[0; 16]));
    assert_names(&folder.refusal(), &[VAE_FILE, "latents_", "overlap"]);
    let endless = json!({"latents_mean": {"dtype": "F32", "shape": [1u64 << 63, 1u64 << 63], "data_offsets": [0, 16]}});
    folder.write(VAE_FILE, with_header(&endless.to_string(), &[0; 16]));
    assert_names(&folder.refusal(), &[VAE_FILE]);
}

#[test]
fn tensors_must_be_the_expected_ones() {
    let (folder, vae, _) = good("tensors");
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = vae.clone();
        change(&mut tensors);
        folder.write(VAE_FILE, file(&tensors));
        folder.refusal()
    };
    let name = "decoder.conv_in.weight";
    let edit = |t: &mut Tensors, change: &dyn Fn(&mut Stored)| change(t.get_mut(name).expect("it is expected"));

    let missing = changed(&|t| drop(t.remove(name)));
    assert_names(&missing, &[VAE_FILE, name, "[8, 4, 3, 3]", "missing"]);
    let extra = changed(&|t| drop(t.insert("decoder.conv_in.extra".to_string(), t[name].clone())));
    assert_names(&extra, &["decoder.conv_in.extra", "not part of this model"]);
    let shape = changed(&|t| edit(t, &|s| s.dims = vec![4, 8, 3, 3]));
    assert_names(&shape, &[name, "has shape [4, 8, 3, 3], needs [8, 4, 3, 3]"]);
    let dtype = changed(&|t| edit(t, &|s| s.dtype = "I32"));
    assert_names(&dtype, &[name, "is I32, needs F32, F16, BF16 or I8"]);
    let nan = changed(&|t| edit(t, &|s| s.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes())));
    assert_names(&nan, &[name, "NaN at 0"]);
    let std = changed(&|t| t.get_mut("latents_std").expect("it is expected").bytes.fill(0));
    assert_names(&std, &["latents_std", "above 0"]);
}

#[test]
fn eight_bit_tensors_need_their_scales() {
    let (folder, mut vae, _) = good("quantised");
    let name = "decoder.conv_in.weight";
    let f16 = |values: &[f32]| values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>();
    vae.insert(name.to_string(), Stored { dtype: "I8", dims: vec![8, 4, 3, 3], bytes: vec![0xFF; 288] });
    folder.write(VAE_FILE, file(&vae));
    assert_names(&folder.refusal(), &["decoder.conv_in.weight_scale", "missing"]);

    let scale = |rows: usize| Stored { dtype: "F16", dims: vec![rows], bytes: f16(&vec![0.5; rows]) };
    vae.insert(format!("{name}_scale"), scale(7));
    folder.write(VAE_FILE, file(&vae));
    assert_names(&folder.refusal(), &["decoder.conv_in.weight_scale", "has shape [7], needs [8]"]);

    vae.insert(format!("{name}_scale"), scale(8));
    folder.write(VAE_FILE, file(&vae));
    let model = Model::load(&folder.0).expect("the scales fit");
    let id = model.weights().find("vae.decoder.conv_in.weight").expect("it is uploaded");
    assert!(model.weights().get(id).data.iter().all(|v| *v == -0.5), "-1 times one half");
    assert_eq!(model.weights().get(id).shape.dims(), [8, 3, 3, 4]);
}

#[test]
fn shards_must_agree_with_their_index() {
    let (folder, _, dit) = good("shards");
    fs::remove_file(folder.0.join(DIT_FILE)).expect("it was there");
    let (first, second) = ("diffusion_pytorch_model-00001-of-00002", "diffusion_pytorch_model-00002-of-00002");
    let (mut a, mut b, mut map) = (Tensors::new(), Tensors::new(), serde_json::Map::new());
    for (i, (name, tensor)) in dit.iter().enumerate() {
        let (part, shard) = if i % 2 == 0 { (&mut a, first) } else { (&mut b, second) };
        part.insert(name.clone(), tensor.clone());
        map.insert(name.clone(), json!(format!("{shard}.safetensors")));
    }
    let index = "transformer/diffusion_pytorch_model.safetensors.index.json";
    let write = |map: &serde_json::Map<String, Value>| folder.write(index, json!({"weight_map": map}).to_string());
    folder.write(&format!("transformer/{first}.safetensors"), file(&a));
    folder.write(&format!("transformer/{second}.safetensors"), file(&b));
    write(&map);
    folder.load().expect("the shards are right");

    let moved = a.keys().next().expect("there are tensors").clone();
    let mut wrong = map.clone();
    wrong.insert(moved.clone(), json!(format!("{second}.safetensors")));
    write(&wrong);
    assert_names(&folder.refusal(), &[&moved, "not where the index says"]);
    wrong.insert(moved, json!("../../vae/diffusion_pytorch_model.safetensors"));
    write(&wrong);
    assert_names(&folder.refusal(), &[index, "not the name of a weight file"]);
    write(&map);
    folder.write("transformer/other.safetensors", file(&b));
    assert_names(&folder.refusal(), &["other.safetensors", "belongs to no tensor"]);
}

#[test]
fn the_hash_covers_every_weight_file() {
    let (folder, mut vae, _) = good("hash");
    let hash = |folder: &Folder| Model::load(&folder.0).expect("it loads").info().hash.clone();
    let before = hash(&folder);
    assert_eq!(before.len(), 64);
    assert_eq!(before, hash(&folder));
    vae.get_mut("latents_mean").expect("it is expected").bytes[0] ^= 1;
    folder.write(VAE_FILE, file(&vae));
    assert_ne!(before, hash(&folder));
}
