//! Which experts a sequence uses most, and a short list of them to be kept with its state.

/// Rows after which a use counts half.
const HALF_LIFE: f32 = 128.0;
/// Weights are brought back to 1 before they lose precision against each other.
const LIMIT: f32 = 1e30;
/// Most experts of a list.
const MOST: usize = 1 << 14;

/// How often a sequence has used each expert, an old use counting less than a new one.
#[derive(Debug, Clone)]
pub struct Heat {
    experts: usize,
    layers: Vec<LayerHeat>,
}

#[derive(Debug, Clone)]
struct LayerHeat {
    uses: Vec<f32>,
    /// What a use counts now: growing weights are decay without touching old counts.
    weight: f32,
}

impl Heat {
    /// Of a sequence that has used none.
    pub fn new(layers: usize, experts: usize) -> Self {
        Heat { experts, layers: vec![LayerHeat { uses: vec![0.0; experts], weight: 1.0 }; layers] }
    }

    /// Takes in the experts of some rows of a layer, `[rows, top_k]`.
    pub fn used(&mut self, layer: usize, experts: &[u32], top_k: usize) {
        let Some(heat) = self.layers.get_mut(layer) else { return };
        let growth = (1.0 / HALF_LIFE).exp2();
        for row in experts.chunks(top_k.max(1)) {
            heat.weight *= growth;
            for &expert in row {
                if let Some(uses) = heat.uses.get_mut(expert as usize) {
                    *uses += heat.weight;
                }
            }
        }
        if heat.weight > LIMIT {
            heat.uses.iter_mut().for_each(|uses| *uses /= heat.weight);
            heat.weight = 1.0;
        }
    }

    /// The experts that were used, the hottest first, as many as a list may hold.
    pub fn hottest(&self) -> HotExperts {
        let share = MOST / self.layers.len().max(1);
        let layer = |heat: &LayerHeat| {
            let mut used: Vec<u16> = (0..self.experts.min(usize::from(u16::MAX)))
                .filter(|&e| heat.uses.get(e).is_some_and(|&uses| uses > 0.0))
                .map(|e| e as u16)
                .collect();
            let uses = |e: u16| heat.uses.get(usize::from(e)).copied().unwrap_or(0.0);
            used.sort_by(|&a, &b| uses(b).total_cmp(&uses(a)).then(a.cmp(&b)));
            used.truncate(share);
            used
        };
        HotExperts { layers: self.layers.iter().map(layer).collect() }
    }

    /// Counts the experts of a list as used before anything else, the hottest most.
    pub fn inherit(&mut self, hot: &HotExperts) {
        for (heat, experts) in self.layers.iter_mut().zip(&hot.layers) {
            for (rank, &expert) in experts.iter().enumerate() {
                if let Some(uses) = heat.uses.get_mut(usize::from(expert)) {
                    *uses += heat.weight / (rank + 1) as f32;
                }
            }
        }
    }
}

/// Experts by layer, the hottest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HotExperts {
    /// One list for each layer; empty for those without experts.
    pub layers: Vec<Vec<u16>>,
}

impl HotExperts {
    /// Experts of all layers.
    pub fn len(&self) -> usize {
        self.layers.iter().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.layers.iter().all(Vec::is_empty)
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        2 * self.len()
    }

    /// As numbers to be saved: for each layer how many, then which.
    pub fn to_words(&self) -> Vec<u16> {
        let layer = |experts: &Vec<u16>| std::iter::once(experts.len() as u16).chain(experts.clone());
        self.layers.iter().flat_map(layer).collect()
    }

    /// From [`to_words`](Self::to_words); `None` if the numbers are of something else.
    pub fn from_words(mut words: &[u16]) -> Option<Self> {
        let mut layers = Vec::new();
        while let Some((&len, rest)) = words.split_first() {
            layers.push(rest.get(..usize::from(len))?.to_vec());
            words = rest.get(usize::from(len)..)?;
        }
        let hot = HotExperts { layers };
        (hot.len() <= MOST).then_some(hot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_uses_count_more() {
        let mut heat = Heat::new(2, 8);
        for _ in 0..1000 {
            heat.used(0, &[1, 2], 2);
        }
        for _ in 0..300 {
            heat.used(0, &[3, 4, 3, 5], 2);
        }
        let hot = heat.hottest();
        assert_eq!(hot.layers[0][0], 3);
        assert_eq!(hot.layers[0].len(), 5);
        assert!(hot.layers[1].is_empty());
        let mut next = Heat::new(2, 8);
        next.inherit(&hot);
        assert_eq!(next.hottest(), hot);
        next.used(0, &[7], 1);
        assert_eq!(next.hottest().layers[0].len(), 6);
        assert_eq!((hot.len(), hot.bytes(), hot.is_empty()), (5, 10, false));
    }

    #[test]
    fn counts_stay_finite() {
        let mut heat = Heat::new(1, 4);
        for _ in 0..200_000 {
            heat.used(0, &[0, 1], 2);
        }
        assert!(heat.layers[0].uses.iter().all(|u| u.is_finite()));
        assert_eq!(heat.hottest().layers[0], [0, 1]);
    }

    #[test]
    fn lists_come_back_from_their_words() {
        let hot = HotExperts { layers: vec![vec![], vec![3, 1, 2], vec![9]] };
        let words = hot.to_words();
        assert_eq!(HotExperts::from_words(&words), Some(hot));
        assert_eq!(HotExperts::from_words(&words[..words.len() - 1]), None);
        assert_eq!(HotExperts::from_words(&[]), Some(HotExperts::default()));
    }
}
