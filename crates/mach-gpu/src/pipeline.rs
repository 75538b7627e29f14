//! Shaders that the driver has compiled, kept by what they were made from.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};

use wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindGroupLayout, BindGroupLayoutDescriptor,
    BindGroupLayoutEntry, BindingResource, BindingType, BufferBinding, BufferBindingType, ComputePipeline,
    ComputePipelineDescriptor, PassthroughShaderEntryPoint, PipelineCompilationOptions,
    PipelineLayoutDescriptor, ShaderModuleDescriptorPassthrough, ShaderStages,
};

use crate::buffer::Storage;
use crate::shader::{Forms, Interface, Shader};
use crate::{Context, GpuError};

/// A compute pipeline. Copies are the same one.
#[derive(Debug, Clone)]
pub struct Pipeline {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: &'static str,
    raw: ComputePipeline,
    layout: BindGroupLayout,
    interface: Interface,
    /// What it was bound to: pass after pass most buffers are the same ones.
    bound: Mutex<HashMap<Box<[BoundTo]>, BindGroup>>,
}

/// A part of a buffer; buffers are told apart by what they are, not by what is in them.
type BoundTo = (wgpu::Buffer, u64, u64);

/// Bindings of a pipeline that are kept. Past so many all are let go, with the buffers that only they hold.
const BOUND: usize = 1024;

/// Part of a storage buffer.
#[derive(Debug, Clone, Copy)]
pub struct Slice<'a> {
    /// The buffer.
    pub buffer: &'a Storage,
    /// First byte, a multiple of the adapter's `min_storage_buffer_offset_alignment`.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

impl<'a> From<&'a Storage> for Slice<'a> {
    fn from(buffer: &'a Storage) -> Self {
        Slice { buffer, offset: 0, bytes: buffer.bytes() }
    }
}

/// A pipeline and the buffers that it works on.
#[derive(Debug, Clone)]
pub struct Bound {
    pub(crate) pipeline: Pipeline,
    pub(crate) group: BindGroup,
}

impl Pipeline {
    /// Name of the shader.
    pub fn name(&self) -> &'static str {
        self.inner.name
    }

    /// What it is given.
    pub fn interface(&self) -> &Interface {
        &self.inner.interface
    }

    pub(crate) fn raw(&self) -> &ComputePipeline {
        &self.inner.raw
    }

    /// Binds buffers in the order of the shader's bindings.
    pub fn bind<'a>(&self, context: &Context, buffers: &[Slice<'a>]) -> Result<Bound, GpuError> {
        let Inner { name, layout, interface, .. } = &*self.inner;
        if buffers.len() != interface.writable.len() {
            let (given, takes) = (buffers.len(), interface.writable.len());
            return Err(GpuError::Invalid(format!("{name}: {given} buffers given, {takes} taken")));
        }
        let keep = buffers.iter().all(|slice| slice.buffer.lasts());
        let key: Box<[BoundTo]> =
            buffers.iter().map(|slice| (slice.buffer.raw(), slice.offset, slice.bytes)).collect();
        let mut bound = self.inner.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = bound.get(&key).filter(|_| keep) {
            return Ok(Bound { pipeline: self.clone(), group: group.clone() });
        }
        let entry = |(binding, slice): (usize, &Slice<'a>)| BindGroupEntry {
            binding: binding as u32,
            resource: BindingResource::Buffer(BufferBinding {
                buffer: slice.buffer.raw_ref(),
                offset: slice.offset,
                size: NonZeroU64::new(slice.bytes),
            }),
        };
        let entries: Vec<_> = buffers.iter().enumerate().map(entry).collect();
        let description = BindGroupDescriptor { label: Some(name), layout, entries: &entries };
        let group = context.device.create_bind_group(&description);
        if keep {
            if bound.len() >= BOUND {
                bound.clear();
            }
            bound.insert(key, group.clone());
        }
        Ok(Bound { pipeline: self.clone(), group })
    }
}

/// Pipelines of a device, compiled when they are first asked for.
#[derive(Debug)]
pub struct Pipelines {
    context: Context,
    forms: Forms,
    made: Mutex<HashMap<Shader, Pipeline>>,
    /// The same ones, found without putting a shader together.
    kept: Mutex<HashMap<Key, Pipeline>>,
}

/// What tells the shaders of a kernel apart: its name, and what it is made for.
pub type Key = (&'static str, [u32; 4]);

impl Pipelines {
    /// None yet. `forms` is what the shaders' `fma_` and `div_` are.
    pub fn new(context: &Context, forms: Forms) -> Pipelines {
        Pipelines { context: context.clone(), forms, made: Mutex::default(), kept: Mutex::default() }
    }

    /// What `fma_` and `div_` are.
    pub fn forms(&self) -> Forms {
        self.forms
    }

    /// The device.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The shaders that pipelines were made of, so that what ran can be looked at in other forms.
    pub fn shaders(&self) -> Vec<Shader> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The pipeline of the shader that `shader` gives, which is asked only the first time for a key.
    pub fn keyed(&self, key: Key, shader: impl FnOnce() -> Shader) -> Result<Pipeline, GpuError> {
        let kept = |pipelines: &Self| {
            pipelines.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
        };
        if let Some(pipeline) = kept(self) {
            return Ok(pipeline);
        }
        let pipeline = self.get(&shader())?;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(key, pipeline.clone());
        Ok(pipeline)
    }

    /// The pipeline of a shader.
    pub fn get(&self, shader: &Shader) -> Result<Pipeline, GpuError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = made.get(shader) {
            return Ok(pipeline.clone());
        }
        let pipeline = compile(&self.context, shader, self.forms)?;
        made.insert(shader.clone(), pipeline.clone());
        Ok(pipeline)
    }
}

fn compile(context: &Context, shader: &Shader, forms: Forms) -> Result<Pipeline, GpuError> {
    let module = shader.module(forms)?;
    let interface = module.interface.clone();
    let (mut spirv, mut msl, mut entry) = (None, None, interface.entry.clone());
    if context.facts().backend == "metal" {
        let text = module.msl()?;
        (entry, msl) = (text.entry, Some(text.source.into()));
    } else {
        spirv = Some(module.spirv(context.controls())?.into());
    }
    let [x, y, z] = interface.workgroup;
    let entries = [PassthroughShaderEntryPoint { name: entry.as_str().into(), workgroup_size: (x, y, z) }];
    let description = ShaderModuleDescriptorPassthrough {
        label: Some(shader.name),
        entry_points: entries.as_slice().into(),
        spirv,
        msl,
        ..Default::default()
    };
    let device = &context.device;
    // SAFETY: naga validated the module and wrote this text of it; the pass only adds decorations and modes that the
    // driver has. Accesses outside buffers, which nothing checks any more, are ours to avoid.
    let raw_module = unsafe { device.create_shader_module_passthrough(description) };
    let layout_entry = |(binding, &writable): (usize, &bool)| BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: ShaderStages::COMPUTE,
        ty: BindingType::Buffer {
            ty: BufferBindingType::Storage { read_only: !writable },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let layout_entries: Vec<_> = interface.writable.iter().enumerate().map(layout_entry).collect();
    let layout = device.create_bind_group_layout(&BindGroupLayoutDescriptor {
        label: Some(shader.name),
        entries: &layout_entries,
    });
    let pipeline_layout = device.create_pipeline_layout(&PipelineLayoutDescriptor {
        label: Some(shader.name),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: interface.immediates,
    });
    let raw = device.create_compute_pipeline(&ComputePipelineDescriptor {
        label: Some(shader.name),
        layout: Some(&pipeline_layout),
        module: &raw_module,
        entry_point: Some(&entry),
        compilation_options: PipelineCompilationOptions {
            constants: &[],
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    });
    context.check()?;
    Ok(Pipeline {
        inner: Arc::new(Inner { name: shader.name, raw, layout, interface, bound: Mutex::default() }),
    })
}
