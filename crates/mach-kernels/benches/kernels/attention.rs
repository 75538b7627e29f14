//! Attention: 16 heads over 2, 256 wide.

use mach_kernels::Isa;
use mach_kernels::attention::{AttentionScratch, KvCache, KvShape, KvType, attend};

use crate::case::{Suite, Work};

const HEADS: usize = 16;
const KV: KvShape = KvShape { heads: 2, head_dim: 256, kind: KvType::Bf16 };

pub(crate) fn add(suite: &mut Suite) {
    for isa in Isa::available() {
        for (rows, context) in [(1, 512), (1, 8192), (64, 512)] {
            let name = format!("attention {isa} {rows}x{context}");
            if !suite.wants(&name) {
                continue;
            }
            let mut cache = KvCache::new(KV);
            let data = vec![0.01; context * KV.heads * KV.head_dim];
            cache.append(isa, &data, &data, context);
            let width = HEADS * KV.head_dim;
            let (q, mut out) = (vec![0.01; rows * width], vec![0.0; rows * width]);
            let mut scratch = AttentionScratch::default();
            suite.add(name, None, isa, Work::Rows(rows), move |cores| {
                attend(cores, &mut scratch, &cache, &q, HEADS, rows, 0.0625, &mut out);
            });
        }
    }
}
