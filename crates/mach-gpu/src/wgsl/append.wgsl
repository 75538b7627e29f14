// Keys and values of a sequence's new positions into its pages, as bfloat16, a word of two elements a thread.
// A page: keys [heads, 256, head_dim / 2 words], then values likewise.
struct Params { heads: u32, rows: u32, position: u32, first_row: u32, table_at: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> keys: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> values: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read_write> pages: array<u32>;
const WORDS: u32 = HEAD_DIM / 2u;

@compute @workgroup_size(256)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) ng: vec3<u32>) {
  let i = (g.x + g.y * ng.x) * 256u + t;
  let row_words = p.heads * WORDS;
  let row = i / row_words;
  if (row >= p.rows) { return; }
  let head = (i % row_words) / WORDS;
  let word = i % WORDS;
  let position = p.position + row;
  let page = table[p.table_at + position / 256u] * (2u * p.heads * 256u * WORDS);
  let at = page + (head * 256u + position % 256u) * WORDS + word;
  let source = p.first_row * row_words + i;
  let k = keys[source];
  let v = values[source];
  pages[at] = to_bf16(k.x) | (to_bf16(k.y) << 16u);
  pages[at + p.heads * 256u * WORDS] = to_bf16(v.x) | (to_bf16(v.y) << 16u);
}
