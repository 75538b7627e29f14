// `wg.y` is a pair of row and expert, `wg.z` which of two matrices. Rows of `x` are those of pairs, or shared by `share`
// pairs.
struct Params { base: u32, groups: u32, rows: u32, stride: u32, strip_words: u32, record: u32, share: u32, second: u32, out_second: u32, out_at: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> xs: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read> chosen: array<u32>;
