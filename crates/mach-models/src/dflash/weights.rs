//! A draft's weights on the target's device.

use std::path::Path;
use std::sync::Arc;

use mach_checkpoint::{ModelConfig, Tensors, WeightSource};

use super::{DFlash, DraftConfig, DraftError, DraftNeeds, DraftOptions, SecondConfig, Selector};
use crate::blocks::Workspace;
use crate::device::{
    AttentionSpec, AttentionWeights, Device, FeedForwardSpec, FfnSpec, LayerSpec, LayerState, Mask,
    MixerSpec, ModelSpec, Place, Placed, Placement, RopeKind, RopeSpec,
};
use crate::state::SequenceState;

/// Two convolutions over the block's rows (before and after a sub-block) that share their dynamic coefficients.
#[derive(Debug)]
pub(super) struct Convolution<M, V> {
    /// `[2, kernel, hidden]`.
    pub(super) base: V,
    /// `[2 kernel groups, hidden]`.
    pub(super) projection: M,
}

#[derive(Debug)]
pub(super) struct Layer<M, V> {
    pub(super) attention: AttentionSpec,
    pub(super) norms: AttentionWeights<V>,
    pub(super) input_norm: V,
    pub(super) post_norm: V,
    pub(super) q: M,
    pub(super) k: M,
    pub(super) v: M,
    pub(super) o: M,
    pub(super) ffn: FfnSpec,
    pub(super) gate: M,
    pub(super) up: M,
    pub(super) down: M,
    /// Around attention and around the MLP.
    pub(super) convolutions: Option<[Convolution<M, V>; 2]>,
}

/// The weights, and the buffers of a pass.
#[derive(Debug)]
pub(crate) struct DraftWeights<D: Device> {
    pub(super) config: DraftConfig,
    pub(super) fc: D::Matrix,
    pub(super) hidden_norm: D::Vector,
    pub(super) layers: Vec<Layer<D::Matrix, D::Vector>>,
    pub(super) norm: D::Vector,
    /// `[rank, hidden]` and the selector's number of candidates.
    pub(super) selector: Option<(D::Matrix, usize)>,
    pub(super) workspace: Workspace<D>,
    pub(super) buffers: Buffers<D>,
    pub(crate) placed: Placed,
}

/// Buffers beside those of a [`Workspace`].
#[derive(Debug)]
pub(super) struct Buffers<D: Device> {
    pub(super) dynamic: D::Buf,
    pub(super) convolved: D::Buf,
    pub(super) margins: D::Buf,
    pub(super) projected: D::Buf,
    pub(super) candidates: D::Routing,
}

impl<D: Device> Default for Buffers<D> {
    fn default() -> Self {
        Buffers {
            dynamic: D::Buf::default(),
            convolved: D::Buf::default(),
            margins: D::Buf::default(),
            projected: D::Buf::default(),
            candidates: D::Routing::default(),
        }
    }
}

fn attention_spec(c: &DraftConfig, mask: Mask) -> AttentionSpec {
    AttentionSpec {
        heads: c.heads,
        kv_heads: c.kv_heads,
        head_dim: c.head_dim,
        rope: RopeSpec { theta: c.theta, rotary_dim: c.head_dim, kind: RopeKind::Half },
        mask,
        gated: false,
        qk_norm: Some(c.eps),
        v_norm: None,
        scale: None,
        softcap: None,
        sinks: false,
        bias: false,
        k_as_v: false,
        plain_cache: true,
    }
}

fn spec(c: &DraftConfig) -> ModelSpec {
    let layer = |&mask: &Mask| LayerSpec {
        mixer: MixerSpec::Attention(attention_spec(c, mask)),
        feed_forward: FeedForwardSpec::Dense(FfnSpec::swiglu(c.intermediate_size)),
    };
    ModelSpec {
        streams: None,
        hidden: c.hidden_size,
        vocab: c.vocab_size,
        eps: c.eps,
        embedding_scale: c.input_embedding_scale,
        softcap: c.softcap,
        layers: c.layers.iter().map(layer).collect(),
    }
}

/// Places a draft's tensors.
struct DraftLoader<'a, P> {
    tensors: &'a Tensors,
    placement: P,
    /// For linear layers.
    place: Place,
}

impl<'a, P: Placement<'a>> DraftLoader<'a, P> {
    fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<P::Matrix, DraftError> {
        let source = self.tensors.linear(module, rows, cols)?;
        Ok(self.placement.matrix(WeightSource::Stored(source), self.place)?)
    }

    /// A weight that stays as it is stored.
    fn exact(&mut self, module: &str, rows: usize, cols: usize) -> Result<P::Matrix, DraftError> {
        let source = self.tensors.linear(module, rows, cols)?;
        Ok(self.placement.matrix(WeightSource::Stored(source), Place::Activations)?)
    }

    fn vector(&mut self, tensor: &str, shape: &[usize]) -> Result<P::Vector, DraftError> {
        Ok(self.placement.vector(self.tensors.floats(tensor, shape)?))
    }

    fn convolution(
        &mut self,
        base: &str,
        hidden: usize,
        second: &SecondConfig,
    ) -> Result<Convolution<P::Matrix, P::Vector>, DraftError> {
        let (kernel, groups) = (second.conv_kernel, hidden / second.conv_group);
        Ok(Convolution {
            base: self.vector(&format!("{base}.base_kernel"), &[2, kernel, hidden])?,
            projection: self.exact(&format!("{base}.kernel_projection"), 2 * kernel * groups, hidden)?,
        })
    }

    fn layer(
        &mut self,
        n: usize,
        c: &DraftConfig,
        mask: Mask,
    ) -> Result<Layer<P::Matrix, P::Vector>, DraftError> {
        let (hidden, head, wide) = (c.hidden_size, c.head_dim, c.intermediate_size);
        let (width, kv_width) = (c.heads * head, c.kv_heads * head);
        let name = |rest: &str| format!("layers.{n}.{rest}");
        let convolutions = match &c.second {
            Some(second) => Some([
                self.convolution(&name("attention_conv"), hidden, second)?,
                self.convolution(&name("mlp_conv"), hidden, second)?,
            ]),
            None => None,
        };
        Ok(Layer {
            attention: attention_spec(c, mask),
            input_norm: self.vector(&name("input_layernorm.weight"), &[hidden])?,
            post_norm: self.vector(&name("post_attention_layernorm.weight"), &[hidden])?,
            q: self.matrix(&name("self_attn.q_proj"), width, hidden)?,
            k: self.matrix(&name("self_attn.k_proj"), kv_width, hidden)?,
            v: self.matrix(&name("self_attn.v_proj"), kv_width, hidden)?,
            o: self.matrix(&name("self_attn.o_proj"), hidden, width)?,
            norms: AttentionWeights {
                q_norm: Some(self.vector(&name("self_attn.q_norm.weight"), &[head])?),
                k_norm: Some(self.vector(&name("self_attn.k_norm.weight"), &[head])?),
                sinks: None,
            },
            ffn: FfnSpec::swiglu(wide),
            gate: self.matrix(&name("mlp.gate_proj"), wide, hidden)?,
            up: self.matrix(&name("mlp.up_proj"), wide, hidden)?,
            down: self.matrix(&name("mlp.down_proj"), hidden, wide)?,
            convolutions,
        })
    }
}

/// A draft's weights in their places.
struct Gathered<M, V> {
    fc: M,
    layers: Vec<Layer<M, V>>,
    selector: Option<(M, usize)>,
    /// Its tables, on the host.
    tables: Option<Arc<Selector>>,
    hidden_norm: V,
    norm: V,
}

impl<'a, P: Placement<'a>> DraftLoader<'a, P> {
    fn gather(&mut self, c: &DraftConfig) -> Result<Gathered<P::Matrix, P::Vector>, DraftError> {
        let hidden = c.hidden_size;
        let fc = self.matrix("fc", hidden, c.target_layer_ids.len() * hidden)?;
        let layers = c.layers.iter().enumerate();
        let layers = layers.map(|(n, &mask)| self.layer(n, c, mask)).collect::<Result<_, _>>()?;
        let (selector, tables) = match &c.second {
            Some(second) => {
                let (vocab, rank) = (c.vocab_size, second.selector_rank);
                let top_k = second.selector_top_k.min(vocab);
                let table =
                    |name: &str| self.tensors.table(&format!("candidate_selector.{name}"), vocab, rank);
                let (predecessor, successor) = (table("predecessor_codebook")?, table("successor_codebook")?);
                let projection = self.exact("candidate_selector.hidden_projection", rank, hidden)?;
                let tables = Selector::new(&predecessor, &successor, rank, top_k)?;
                (Some((projection, top_k)), Some(Arc::new(tables)))
            }
            None => (None, None),
        };
        Ok(Gathered {
            fc,
            layers,
            selector,
            tables,
            hidden_norm: self.vector("hidden_norm.weight", &[hidden])?,
            norm: self.vector("norm.weight", &[hidden])?,
        })
    }
}

/// Looks at the draft in `dir` as a target with these settings would load it on `device`, and loads nothing.
pub fn check_draft<D: Device>(
    dir: &Path,
    target: &ModelConfig,
    options: DraftOptions,
    device: &D,
) -> Result<DraftNeeds, DraftError> {
    let (tensors, json) = Tensors::open(dir)?;
    let config = DraftConfig::parse(&dir.join("config.json"), &json)?;
    config.fits(target)?;
    let spec = spec(&config);
    device.check(&spec)?;
    let place = options.quantize_bits.map_or(Place::Activations, Place::Quantized);
    let mut from = DraftLoader { tensors: &tensors, placement: device.placement(&tensors), place };
    from.gather(&config)?;
    let page = device.state_bytes(&spec, DraftNeeds::PAGE);
    Ok(DraftNeeds::of(&config, from.placement.weight_bytes() as usize, page))
}

impl<D: Device> DraftWeights<D> {
    /// Loads the draft in `dir` for a target.
    pub(crate) fn load(
        dir: &Path,
        target: &ModelConfig,
        options: DraftOptions,
        device: &mut D,
    ) -> Result<(Self, DFlash), DraftError> {
        let (tensors, json) = Tensors::open(dir)?;
        let config = DraftConfig::parse(&dir.join("config.json"), &json)?;
        config.fits(target)?;
        let spec = spec(&config);
        device.check(&spec)?;
        let place = options.quantize_bits.map_or(Place::Activations, Place::Quantized);
        let mut from = DraftLoader { tensors: &tensors, placement: device.placement(&tensors), place };
        let gathered = from.gather(&config)?;
        let weight_bytes = from.placement.weight_bytes() as usize;
        let needs = DraftNeeds::of(&config, weight_bytes, device.state_bytes(&spec, DraftNeeds::PAGE));
        let placement = from.placement;
        let placed = device.fill(placement, &mut |_| ())?;
        let empty = spec.layers.iter().map(|l| Box::new(device.new_state(l)) as Box<dyn LayerState>);
        let draft = DFlash {
            config: config.clone(),
            empty: SequenceState::new(empty.collect()),
            selector: gathered.tables,
            needs,
        };
        let weights = DraftWeights {
            config,
            fc: gathered.fc,
            hidden_norm: gathered.hidden_norm,
            layers: gathered.layers,
            norm: gathered.norm,
            selector: gathered.selector,
            workspace: Workspace::default(),
            buffers: Buffers::default(),
            placed,
        };
        Ok((weights, draft))
    }
}
