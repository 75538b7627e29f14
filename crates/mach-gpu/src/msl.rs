//! MSL that computes what it says: fast math and contraction off.
//!
//! wgpu compiles MSL with the default options, which are fast math; two pragmas at the top of the text switch it off. It
//! does not fill naga's argument of buffer sizes for such a text either, so shaders must not ask for them.

use naga::back::msl;

use crate::GpuError;
use crate::shader::Interface;

/// What every text starts with. MSL 3.2 (macOS 15) knows both.
pub const PRAGMAS: &str = "#pragma METAL fp math_mode(safe)\n#pragma METAL fp contract(off)\n";

/// A text and the name of its entry point in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The source.
    pub source: String,
    /// What the compute function is called.
    pub entry: String,
}

/// Writes a module that was validated. Slots are those that wgpu gives: immediates first, then bindings in order.
pub fn write(
    name: &str,
    module: &naga::Module,
    info: &naga::valid::ModuleInfo,
    interface: &Interface,
) -> Result<Text, GpuError> {
    let shader = |why: String| GpuError::Shader { name: name.to_owned(), why };
    let first = u8::from(interface.immediates > 0);
    let mut resources = msl::EntryPointResources {
        immediates_buffer: (first > 0).then_some(0),
        sizes_buffer: Some(first + interface.writable.len() as u8),
        ..Default::default()
    };
    for (binding, &mutable) in interface.writable.iter().enumerate() {
        let target = msl::BindTarget { buffer: Some(first + binding as u8), mutable, ..Default::default() };
        resources.resources.insert(naga::ResourceBinding { group: 0, binding: binding as u32 }, target);
    }
    let options = msl::Options {
        lang_version: (3, 2),
        per_entry_point_map: [(interface.entry.clone(), resources)].into_iter().collect(),
        fake_missing_bindings: false,
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((naga::ShaderStage::Compute, interface.entry.clone())),
        ..Default::default()
    };
    let (text, told) =
        msl::write_string(module, info, &options, &pipeline).map_err(|error| shader(error.to_string()))?;
    let entry = match told.entry_point_names.first() {
        Some(Ok(entry)) => entry.clone(),
        Some(Err(error)) => return Err(shader(error.to_string())),
        None => return Err(shader("no entry point".to_owned())),
    };
    let source = format!("{PRAGMAS}{}", without_sizes(&text));
    if source.contains("_buffer_sizes") {
        return Err(shader("asks for the length of a buffer".to_owned()));
    }
    Ok(Text { source, entry })
}

/// The text without the argument of buffer sizes, which nothing reads.
fn without_sizes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let trimmed = line.trim_start_matches([',', ' ']);
        if trimmed.starts_with("constant _mslBufferSizes& _buffer_sizes") {
            continue;
        }
        let line = line.replace(", _buffer_sizes)", ")").replace("(_buffer_sizes)", "()");
        out.push_str(&line);
        out.push('\n');
    }
    // A helper's last argument now ends in a comma.
    out.replace(",\n) {", "\n) {")
}
