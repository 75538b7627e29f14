//! SPIR-V that computes what it says: no contraction, IEEE rounding, subnormals and signs of zero kept.
//!
//! naga writes none of this, and without it drivers fuse `a * b + c`, simplify `(a + b) - a` to `b`, and divide to 2.5 ulp.
//! The pass decorates every float operation with `NoContraction`, adds the execution modes that the driver has, and
//! refuses operations whose result an implementation may choose.

use crate::GpuError;

/// What the driver promises of 32-bit floats, and the version of SPIR-V that it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controls {
    /// Subnormals are kept.
    pub denorm_preserve: bool,
    /// Signs of zero, infinities and NaN are kept.
    pub signed_zero: bool,
    /// Rounds to nearest even.
    pub round_nearest: bool,
    /// SPIR-V version.
    pub version: (u8, u8),
}

impl Controls {
    /// None of them, as on Metal.
    pub const NONE: Controls =
        Controls { denorm_preserve: false, signed_zero: false, round_nearest: false, version: (1, 5) };

    /// Of an adapter; the error is what it lacks.
    #[cfg(not(target_vendor = "apple"))]
    pub(crate) fn of(adapter: &wgpu::Adapter) -> Result<Controls, String> {
        // SAFETY: the handle is used while `adapter` lives, and only to be asked.
        let Some(hal) = (unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }) else {
            return Ok(Controls::NONE);
        };
        let mut floats = ash::vk::PhysicalDeviceFloatControlsProperties::default();
        let mut properties = ash::vk::PhysicalDeviceProperties2::default();
        let instance = hal.shared_instance().raw_instance();
        let device = hal.raw_physical_device();
        // SAFETY: the device belongs to the instance.
        let version = unsafe { instance.get_physical_device_properties(device) }.api_version;
        if version < ash::vk::API_VERSION_1_2 {
            return Err("Vulkan 1.2".to_owned());
        }
        properties = properties.push_next(&mut floats);
        // SAFETY: as above; the chain is valid for Vulkan 1.2.
        unsafe { instance.get_physical_device_properties2(device, &mut properties) };
        Ok(Controls {
            denorm_preserve: floats.shader_denorm_preserve_float32 != 0,
            signed_zero: floats.shader_signed_zero_inf_nan_preserve_float32 != 0,
            round_nearest: floats.shader_rounding_mode_rte_float32 != 0,
            version: if version < ash::vk::API_VERSION_1_3 { (1, 5) } else { (1, 6) },
        })
    }

    /// Of an adapter; the error is what it lacks.
    #[cfg(target_vendor = "apple")]
    pub(crate) fn of(_: &wgpu::Adapter) -> Result<Controls, String> {
        Ok(Controls::NONE)
    }

    /// Capabilities and execution modes (SPIR-V specification, "Capability" and "Execution Mode").
    fn modes(self) -> impl Iterator<Item = (u32, u32)> {
        [
            (self.denorm_preserve, (4464, 4459)),
            (self.signed_zero, (4466, 4461)),
            (self.round_nearest, (4467, 4462)),
        ]
        .into_iter()
        .filter_map(|(has, mode)| has.then_some(mode))
    }
}

const HEADER: usize = 5;

mod op {
    pub(super) const EXT_INST: u32 = 12;
    pub(super) const ENTRY_POINT: u32 = 15;
    pub(super) const EXECUTION_MODE: u32 = 16;
    pub(super) const CAPABILITY: u32 = 17;
    pub(super) const DECORATE: u32 = 71;
    /// OpFAdd, OpFSub, OpFMul, OpFDiv, OpVectorTimesScalar.
    pub(super) const FLOAT: [u32; 5] = [129, 131, 133, 136, 142];
    /// OpFRem, OpFMod, products of matrices, OpDot: sums in an order of the driver's choice.
    pub(super) const REFUSED: [u32; 8] = [140, 141, 143, 144, 145, 146, 147, 148];
}

const NO_CONTRACTION: u32 = 42;
/// `Fma` of GLSL.std.450.
const FMA: u32 = 50;

/// Functions of GLSL.std.450 whose results are not the same everywhere: angles, powers, roots but the inverse one (whose
/// only use is as a first guess), minimum and maximum (subnormals), mixtures, lengths.
fn refused_function(number: u32) -> bool {
    matches!(number, 11..=31 | 37 | 40 | 46 | 49 | 66..=72)
}

/// One instruction after the other: where it starts, its opcode, its words.
fn instructions(words: &[u32]) -> impl Iterator<Item = (usize, u32, &[u32])> {
    let mut at = HEADER;
    std::iter::from_fn(move || {
        let first = *words.get(at)?;
        let length = ((first >> 16) as usize).max(1);
        let all = words.get(at..at + length)?;
        let start = at;
        at += length;
        Some((start, first & 0xFFFF, all))
    })
}

/// Writes a module that was validated, and puts it through the pass.
pub fn write(
    name: &str,
    module: &naga::Module,
    info: &naga::valid::ModuleInfo,
    controls: Controls,
) -> Result<Vec<u32>, GpuError> {
    use naga::back::spv;
    let mut options = spv::Options {
        lang_version: controls.version,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    options.flags.remove(spv::WriterFlags::DEBUG);
    let shader = |why: String| GpuError::Shader { name: name.to_owned(), why };
    let words = spv::write_vec(module, info, &options, None).map_err(|error| shader(error.to_string()))?;
    exact(&words, controls).map_err(shader)
}

/// The pass. The error names what a shader must not use.
pub fn exact(words: &[u32], controls: Controls) -> Result<Vec<u32>, String> {
    let (mut floats, mut entries) = (Vec::new(), Vec::new());
    let (mut modes_at, mut decorations_at) = (None, None);
    for (start, code, all) in instructions(words) {
        match code {
            op::EXT_INST => match all.get(4) {
                Some(&FMA) => floats.extend(all.get(2)),
                Some(&number) if refused_function(number) => {
                    return Err(format!("function {number} of GLSL.std.450 is not the same everywhere"));
                }
                _ => {}
            },
            op::ENTRY_POINT => entries.extend(all.get(2)),
            op::EXECUTION_MODE => {
                modes_at.get_or_insert(start);
            }
            op::DECORATE => {
                decorations_at.get_or_insert(start);
            }
            _ if op::FLOAT.contains(&code) => floats.extend(all.get(2)),
            _ if op::REFUSED.contains(&code) => {
                return Err(format!("operation {code} is not the same everywhere"));
            }
            _ => {}
        }
    }
    let Some(modes_at) = modes_at else { return Err("no execution mode".to_owned()) };
    let Some(decorations_at) = decorations_at.filter(|at| *at >= modes_at) else {
        return Err("no decorations".to_owned());
    };
    let mut out = words[..HEADER].to_vec();
    for (capability, _) in controls.modes() {
        out.extend([2 << 16 | op::CAPABILITY, capability]);
    }
    out.extend(&words[HEADER..modes_at]);
    for entry in &entries {
        for (_, mode) in controls.modes() {
            out.extend([4 << 16 | op::EXECUTION_MODE, *entry, mode, 32]);
        }
    }
    out.extend(&words[modes_at..decorations_at]);
    for id in floats {
        out.extend([3 << 16 | op::DECORATE, id, NO_CONTRACTION]);
    }
    out.extend(&words[decorations_at..]);
    Ok(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kernels::instances;
    use crate::shader::{Division, Fma, Forms, Shader};

    const ALL: Controls =
        Controls { denorm_preserve: true, signed_zero: true, round_nearest: true, version: (1, 5) };

    /// Ids of results that are to be decorated, ids that are, and how often each mode is there.
    fn decorated(words: &[u32]) -> (Vec<u32>, Vec<u32>, [usize; 3]) {
        let (mut results, mut marked, mut modes) = (Vec::new(), Vec::new(), [0; 3]);
        for (_, code, all) in instructions(words) {
            if op::FLOAT.contains(&code) || code == op::EXT_INST && all[4] == FMA {
                results.push(all[2]);
            }
            if code == op::DECORATE && all[2] == NO_CONTRACTION {
                marked.push(all[1]);
            }
            if code == op::EXECUTION_MODE && all[2] >= 4459 {
                modes[[4459, 4461, 4462].iter().position(|mode| *mode == all[2]).unwrap()] += 1;
                assert_eq!(all[3], 32);
            }
        }
        results.sort_unstable();
        marked.sort_unstable();
        (results, marked, modes)
    }

    /// Every float operation is decorated, and the modes are there that a driver has.
    pub(crate) fn check(shader: &Shader) {
        for fma in [Fma::Native, Fma::Double] {
            let module = shader.module(Forms { fma, division: Division::Scaled }).unwrap();
            let (results, marked, modes) = decorated(&module.spirv(ALL).unwrap());
            assert_eq!(results, marked, "{}", shader.name);
            assert_eq!(modes, [1, 1, 1]);
            let (_, _, modes) = decorated(&module.spirv(Controls::NONE).unwrap());
            assert_eq!(modes, [0, 0, 0]);
        }
    }

    #[test]
    fn every_float_operation_of_every_shader_is_decorated() {
        instances().iter().for_each(check);
    }

    #[test]
    fn what_is_not_the_same_everywhere_is_refused() {
        let with = |expression: &str| {
            let text = format!(
                "@group(0) @binding(0) var<storage, read_write> x: array<f32>;
                @compute @workgroup_size(1) fn run() {{ x[0] = {expression}; }}"
            );
            let text: &'static str = Box::leak(text.into_boxed_str());
            Shader::new("test", text).module(Forms::NATIVE).unwrap().spirv(ALL)
        };
        for expression in [
            "exp(x[1])",
            "sqrt(x[1])",
            "tanh(x[1])",
            "pow(x[1], x[2])",
            "max(x[1], x[2])",
            "min(x[1], x[2])",
            "dot(vec3<f32>(x[1]), vec3<f32>(x[2]))",
            "length(vec2<f32>(x[1], x[2]))",
            "x[1] % x[2]",
        ] {
            assert!(with(expression).is_err(), "{expression}");
        }
        for expression in ["fma(x[1], x[2], x[3])", "round(x[1])", "abs(x[1])", "f32(min(u32(x[1]), 3u))"] {
            assert!(with(expression).is_ok(), "{expression}");
        }
    }
}
