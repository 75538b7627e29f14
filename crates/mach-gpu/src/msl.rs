//! MSL that computes what it says: fast math and contraction off.
//!
//! wgpu compiles MSL with the default options, which are fast math; two pragmas at the top of the text switch it off. It
//! does not fill naga's argument of buffer sizes for such a text either, so shaders must not ask for them.

use naga::back::msl;

use crate::GpuError;
use crate::shader::Interface;

/// What every text starts with. MSL 3.2 (macOS 15) knows both.
pub const PRAGMAS: &str = "#pragma METAL fp math_mode(safe)\n#pragma METAL fp contract(off)\n";

/// naga's argument of buffer sizes.
const SIZES: &str = "constant _mslBufferSizes&";

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
    // naga strips trailing underscores, and `fma_` shall not become a second `fma`.
    let mut module = module.clone();
    for (_, function) in module.functions.iter_mut() {
        function.name = function.name.take().map(|name| format!("mach_{name}"));
    }
    let (text, told) =
        msl::write_string(&module, info, &options, &pipeline).map_err(|error| shader(error.to_string()))?;
    let entry = match told.entry_point_names.first() {
        Some(Ok(entry)) => entry.clone(),
        Some(Err(error)) => return Err(shader(error.to_string())),
        None => return Err(shader("no entry point".to_owned())),
    };
    let source = format!("{PRAGMAS}{}", own_memory(&text, &entry).map_err(shader)?);
    if source.contains("_buffer_sizes") {
        return Err(shader("asks for the length of a buffer".to_owned()));
    }
    Ok(Text { source, entry })
}

/// The text without buffer sizes, and with memory of the workgroup declared in the function. naga makes both arguments,
/// which wgpu fills only for texts that it has made itself.
fn own_memory(text: &str, entry: &str) -> Result<String, String> {
    let start = format!("kernel void {entry}(");
    let mut out = String::with_capacity(text.len());
    let mut lines = text.lines();
    let mut put = |line: &str| {
        out.push_str(line);
        out.push('\n');
    };
    let mut found = false;
    while let Some(line) = lines.next() {
        if line == "struct _mslBufferSizes {" {
            lines.by_ref().find(|line| *line == "};").ok_or("no end of the buffer sizes")?;
        } else if line.ends_with(&start) {
            found = true;
            let arguments: Vec<_> = lines.by_ref().take_while(|line| *line != ") {").collect();
            let bare = arguments.iter().map(|line| line.trim_start_matches([',', ' ']));
            let (memory, others): (Vec<_>, Vec<_>) = bare
                .filter(|line| !line.starts_with(SIZES))
                .partition(|line| line.starts_with("threadgroup "));
            put(line);
            put(&format!("  {}", others.join("\n, ")));
            put(") {");
            for declaration in memory {
                put(&format!("    {};", declaration.replace('&', "")));
            }
        } else if !line.trim_start().starts_with(SIZES) {
            put(&line.replace(", _buffer_sizes)", ")").replace("(_buffer_sizes)", "()"));
        }
    }
    // A helper's argument of sizes was its last.
    let out = out.replace(",\n) {", "\n) {");
    if found { Ok(out) } else { Err("no kernel function".to_owned()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Forms;
    use crate::kernels::instances;
    use crate::shader::{Division, Fma};

    /// What Metal gives a workgroup.
    const MEMORY: u32 = 32 << 10;

    fn depth(text: &str) -> i32 {
        text.chars().fold(0, |depth, c| depth + i32::from(c == '{') - i32::from(c == '}'))
    }

    /// Pragmas, slots, memory and what must not be there. Nothing here compiles MSL; naga has validated what it is made of.
    pub(crate) fn check(shader: &crate::Shader) {
        for division in [Division::Native, Division::Scaled] {
            check_form(shader, Forms { fma: Fma::Native, division });
        }
    }

    fn check_form(shader: &crate::Shader, forms: Forms) {
        let module = shader.module(forms).unwrap();
        let Text { source, entry } = module.msl().unwrap();
        let name = shader.name;
        assert!(source.starts_with(PRAGMAS), "{name}");
        assert_eq!(depth(&source), 0, "{name}");
        for refused in [
            "BufferSizes",
            "_buffer_sizes",
            "fast::",
            "metal::sqrt",
            "metal::exp",
            "metal::tanh",
            "metal::fmax",
            "metal::fmin",
            "double",
        ] {
            assert!(!source.contains(refused), "{name}: {refused}\n{source}");
        }
        // Arguments: built-in values, then buffers in the slots that wgpu gives.
        let (_, rest) = source.split_once(&format!("kernel void {entry}(\n")).unwrap();
        let (arguments, body) = rest.split_once("\n) {\n").unwrap();
        assert!(!arguments.contains("threadgroup "), "{name}: {arguments}");
        let mut slots: Vec<u32> = arguments
            .split("[[buffer(")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap().parse().unwrap())
            .collect();
        slots.sort_unstable();
        let interface = &module.interface;
        let count = interface.writable.len() as u32 + u32::from(interface.immediates > 0);
        assert_eq!(slots, (0..count).collect::<Vec<_>>(), "{name}: {arguments}");
        if interface.immediates > 0 {
            let first = arguments.lines().find(|line| line.contains("[[buffer(0)]]")).unwrap();
            assert!(first.starts_with(", constant "), "{name}: {first}");
        }
        let declared = body.lines().take_while(|line| line.trim_start().starts_with("threadgroup ")).count();
        assert_eq!(declared > 0, interface.workgroup_bytes > 0, "{name}");
        assert!(interface.workgroup_bytes <= MEMORY, "{name}: {} bytes", interface.workgroup_bytes);
        assert!(interface.workgroup.iter().product::<u32>() <= 1024, "{name}");
    }

    #[test]
    fn every_shader_is_sound_msl() {
        instances().iter().for_each(check);
    }

    #[test]
    fn lengths_of_buffers_are_refused() {
        let text = "@group(0) @binding(0) var<storage, read_write> x: array<u32>;
            @compute @workgroup_size(1) fn run() { x[0] = arrayLength(&x); }";
        let module = crate::Shader::new("length", text).module(Forms::NATIVE).unwrap();
        assert!(module.msl().unwrap_err().to_string().contains("length of a buffer"));
    }
}
