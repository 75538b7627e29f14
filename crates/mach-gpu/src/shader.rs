//! From WGSL to what a driver takes.

use std::borrow::Cow;

use naga::valid::ValidationFlags;
use naga::{AddressSpace, ShaderStage, StorageAccess};

use crate::GpuError;

/// How a fused multiply-add is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fma {
    /// The adapter's own.
    Native,
    /// From f64: the product is exact, the sum is rounded to odd, then to f32.
    Double,
}

/// How a quotient is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Division {
    /// The adapter's own.
    Native,
    /// On significands, with residuals by fused multiply-adds.
    Scaled,
}

/// What stands behind `fma_` and `div_`. Roots are corrected everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forms {
    /// Fused multiply-adds.
    pub fma: Fma,
    /// Quotients.
    pub division: Division,
}

impl Forms {
    /// The adapter's own.
    pub const NATIVE: Forms = Forms { fma: Fma::Native, division: Division::Native };

    fn texts(self) -> [&'static str; 2] {
        let fma = match self.fma {
            Fma::Native => include_str!("wgsl/fma_native.wgsl"),
            Fma::Double => include_str!("wgsl/fma_double.wgsl"),
        };
        let division = match self.division {
            Division::Native => include_str!("wgsl/div_native.wgsl"),
            Division::Scaled => include_str!("wgsl/div_scaled.wgsl"),
        };
        [fma, division]
    }
}

/// Value of a constant that a shader is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Constant {
    /// `u32`.
    U32(u32),
    /// `bool`.
    Bool(bool),
}

impl From<u32> for Constant {
    fn from(value: u32) -> Self {
        Constant::U32(value)
    }
}

impl From<bool> for Constant {
    fn from(value: bool) -> Self {
        Constant::Bool(value)
    }
}

/// A shader for certain constants. `run` is its entry point; its buffers are group 0, bindings from 0 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shader {
    /// What errors call it.
    pub name: &'static str,
    /// WGSL, in parts: what it shares with others, then its own.
    pub parts: Vec<Cow<'static, str>>,
    /// Written as `const` lines in front.
    pub constants: Vec<(&'static str, Constant)>,
}

/// By what is short: texts are looked at only where these are equal.
impl std::hash::Hash for Shader {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.constants.hash(state);
        self.parts.iter().for_each(|part| part.len().hash(state));
    }
}

/// Functions that every shader may call.
const MATH: &str = include_str!("wgsl/math.wgsl");
/// Name of every shader's entry point.
pub const ENTRY: &str = "run";

impl Shader {
    /// A shader of one text.
    pub fn new(name: &'static str, text: &'static str) -> Shader {
        Shader { name, parts: vec![Cow::Borrowed(text)], constants: Vec::new() }
    }

    /// A shader of a text that was made for it.
    pub fn generated(name: &'static str, text: String) -> Shader {
        Shader { name, parts: vec![Cow::Owned(text)], constants: Vec::new() }
    }

    /// With a text in front that it shares with others.
    #[must_use]
    pub fn after(mut self, text: &'static str) -> Shader {
        self.parts.insert(self.parts.len().saturating_sub(1), Cow::Borrowed(text));
        self
    }

    /// With a text in front that was made for it.
    #[must_use]
    pub fn after_generated(mut self, text: String) -> Shader {
        self.parts.insert(self.parts.len().saturating_sub(1), Cow::Owned(text));
        self
    }

    /// With a constant.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Constant>) -> Shader {
        self.constants.push((name, value.into()));
        self
    }

    /// The whole WGSL.
    pub fn text(&self, forms: Forms) -> String {
        let mut out = String::new();
        for (name, value) in &self.constants {
            out += &match value {
                Constant::U32(value) => format!("const {name}: u32 = {value}u;\n"),
                Constant::Bool(value) => format!("const {name}: bool = {value};\n"),
            };
        }
        for part in forms.texts().into_iter().chain([MATH]).chain(self.parts.iter().map(|part| &**part)) {
            out += part;
            out.push('\n');
        }
        out
    }

    /// Parses and validates it.
    pub fn module(&self, forms: Forms) -> Result<Module, GpuError> {
        let shader = |why: String| GpuError::Shader { name: self.name.to_owned(), why };
        let text = self.text(forms);
        let mut module =
            naga::front::wgsl::parse_str(&text).map_err(|error| shader(error.emit_to_string(&text)))?;
        naga::compact::compact(&mut module, naga::compact::KeepUnused::No);
        // Loops around barriers have bounds that naga cannot see to be uniform.
        let flags = ValidationFlags::all().difference(ValidationFlags::CONTROL_FLOW_UNIFORMITY);
        let info = naga::valid::Validator::new(flags, naga::valid::Capabilities::all())
            .validate(&module)
            .map_err(|error| shader(error.emit_to_string(&text)))?;
        let interface = Interface::of(&module).map_err(shader)?;
        Ok(Module { name: self.name, module, info, interface })
    }
}

/// A shader that was parsed and validated.
#[derive(Debug)]
pub struct Module {
    pub(crate) name: &'static str,
    pub(crate) module: naga::Module,
    pub(crate) info: naga::valid::ModuleInfo,
    /// What it is given.
    pub interface: Interface,
}

impl Module {
    /// SPIR-V through the pass.
    pub fn spirv(&self, controls: crate::spirv::Controls) -> Result<Vec<u32>, GpuError> {
        crate::spirv::write(self.name, &self.module, &self.info, controls)
    }

    /// MSL with its pragmas.
    pub fn msl(&self) -> Result<crate::msl::Text, GpuError> {
        crate::msl::write(self.name, &self.module, &self.info, &self.interface)
    }
}

/// What a shader is given: buffers, immediates, threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name of the entry point.
    pub entry: String,
    /// For each buffer whether it is written.
    pub writable: Vec<bool>,
    /// Bytes of immediates.
    pub immediates: u32,
    /// Threads of a workgroup.
    pub workgroup: [u32; 3],
    /// Bytes of memory that they share.
    pub workgroup_bytes: u32,
}

impl Interface {
    fn of(module: &naga::Module) -> Result<Interface, String> {
        let [entry] = module.entry_points.as_slice() else {
            return Err(format!("{} entry points", module.entry_points.len()));
        };
        if entry.stage != ShaderStage::Compute || entry.name != ENTRY {
            return Err(format!("the entry point is not `{ENTRY}`"));
        }
        let mut buffers = Vec::new();
        let (mut immediates, mut workgroup_bytes) = (0, 0);
        for (_, variable) in module.global_variables.iter() {
            match (variable.space, &variable.binding) {
                (AddressSpace::Storage { access }, Some(at)) if at.group == 0 => {
                    buffers.push((at.binding, access.contains(StorageAccess::STORE)));
                }
                (AddressSpace::Immediate, None) => {
                    immediates = module.types[variable.ty].inner.size(module.to_ctx()).next_multiple_of(4);
                }
                (AddressSpace::WorkGroup, None) => {
                    workgroup_bytes += module.types[variable.ty].inner.size(module.to_ctx());
                }
                (AddressSpace::Private, None) => {}
                _ => {
                    return Err(
                        "a resource that is neither a storage buffer of group 0 nor immediates".to_owned()
                    );
                }
            }
        }
        buffers.sort_unstable();
        if buffers.iter().enumerate().any(|(i, (binding, _))| i as u32 != *binding) {
            return Err(format!("bindings that are not in use or not in a row: {buffers:?}"));
        }
        if immediates > crate::context::IMMEDIATES {
            return Err(format!("{immediates} bytes of immediates"));
        }
        Ok(Interface {
            entry: entry.name.clone(),
            writable: buffers.into_iter().map(|(_, writable)| writable).collect(),
            immediates,
            workgroup: entry.workgroup_size,
            workgroup_bytes,
        })
    }
}
