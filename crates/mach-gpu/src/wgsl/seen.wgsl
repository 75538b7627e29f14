// What sums are multiplied by in the end. A sink is a score without a value.
fn inverse(sum: f32, best: f32, sink: f32) -> f32 {
  if (!SINKS) { return div_(1.0f, sum); }
  let most = select(best, sink, sink > best);
  let a = exp_(best - most);
  let b = exp_(sink - most);
  return div_(a, (sum * a) + b);
}

// Positions of page `page` that a query sees: `here` of them, the first `skipped` with weight 0.
const PAGE: u32 = 256u;
struct Seen { here: u32, skipped: u32 }
fn seen(range: vec2<u32>, page: u32) -> Seen {
  let start = page * PAGE;
  let here = min(max(range.y, start) - start, PAGE);
  let skipped = max(range.x, start) - start;
  return Seen(select(here, 0u, skipped >= here), skipped);
}
