// What an adapter must compute as the CPU does, operation by operation. Results of operation k lie at k * N.
@group(0) @binding(0) var<storage, read> xs: array<f32>;
@group(0) @binding(1) var<storage, read> ys: array<f32>;
@group(0) @binding(2) var<storage, read> zs: array<f32>;
@group(0) @binding(3) var<storage, read> es: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(64)
fn run(@builtin(local_invocation_index) t: u32, @builtin(workgroup_id) g: vec3<u32>) {
  let i = g.x * 64u + t;
  let x = xs[i];
  let y = ys[i];
  let z = zs[i];
  let e = es[i];
  out[i] = bitcast<u32>(x + y);
  out[N + i] = bitcast<u32>(x * y);
  out[2u * N + i] = bitcast<u32>(fma_(x, y, z));
  out[3u * N + i] = bitcast<u32>(fma_(x, y, -(x * y)));
  out[4u * N + i] = bitcast<u32>((x * y) + z);
  out[5u * N + i] = bitcast<u32>((x + y) - x);
  out[6u * N + i] = bitcast<u32>(div_(x, y));
  out[7u * N + i] = bitcast<u32>(sqrt_(abs(x)));
  out[8u * N + i] = bitcast<u32>(max_(x, y));
  out[9u * N + i] = u32(round_int(x));
  out[10u * N + i] = to_bf16(x);
  out[11u * N + i] = bitcast<u32>(exp_(e));
  out[12u * N + i] = bitcast<u32>(silu_(e));
  out[13u * N + i] = bitcast<u32>(softplus_(e));
  out[14u * N + i] = u32(dot4I8Packed(bitcast<u32>(x), bitcast<u32>(y)));

  // Rows of a product of 4-bit codes: integers inside a group, one chain over the groups.
  var row = 0.0f;
  for (var k = 0u; k < 8u; k++) {
    var dot = 0i;
    var sum = 0i;
    for (var j = 0u; j < 16u; j++) {
      let codes = bitcast<u32>(xs[(i + 16u * k + j) % N]) & 0x0f0f0f0fu;
      let act = bitcast<u32>(ys[(16u * k + j) % N]);
      dot += dot4I8Packed(codes, act);
      sum += dot4I8Packed(0x01010101u, act);
    }
    row = fma_(fma_(xs[(i + k) % N], f32(dot), ys[(i + k) % N] * f32(sum)), zs[k], row);
  }
  out[15u * N + i] = bitcast<u32>(row);

  // Neighbours, as the scores of attention are added up.
  let near = swap(vec4<f32>(f32(t)), 1u, t).x;
  let far = swap(vec4<f32>(f32(t)), 2u, t).w;
  out[16u * N + i] = u32(near) + 256u * u32(far);

  // A sum of all products, begun somewhere else by each workgroup.
  if (t < 16u) {
    var acc = 0.0f;
    for (var j = t; j < N; j += 16u) { acc = fma_(xs[(j + 37u * g.x) % N], ys[j], acc); }
    partials[t] = acc;
  }
  workgroupBarrier();
  if (t == 0u) { out[17u * N + g.x] = bitcast<u32>(tree(0u)); }
}
