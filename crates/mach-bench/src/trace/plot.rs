//! A plot of hit rates over bank sizes, as SVG.

use std::fmt::Write as _;

use super::Replay;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 96.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 44.0;
const COLOURS: [&str; 6] = ["#1b6ca8", "#c0392b", "#27823b", "#333333", "#8e44ad", "#b9770e"];

/// The plot: share of experts that fit across, share of hits upwards.
pub fn svg(replay: &Replay) -> String {
    let x = |share: f64| LEFT + share * (WIDTH - LEFT - RIGHT);
    let y = |rate: f64| HEIGHT - BOTTOM - rate * (HEIGHT - TOP - BOTTOM);
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>
<text x="{LEFT}" y="18">hit rate of decoding, {} tokens{}</text>
<text x="{}" y="{}" text-anchor="middle">share of all experts in the bank</text>"#,
        replay.decoded,
        if replay.random_routing { ", random routing: says nothing about policies" } else { "" },
        x(0.5),
        HEIGHT - 8.0,
    );
    for i in 0..=4 {
        let at = f64::from(i) / 4.0;
        let _ = writeln!(
            out,
            r##"<line x1="{x0:.1}" x2="{x1:.1}" y1="{y:.1}" y2="{y:.1}" stroke="#ddd"/>
<text x="{label:.1}" y="{text:.1}" text-anchor="end">{percent} %</text>
<text x="{tick:.1}" y="{below:.1}" text-anchor="middle">{percent} %</text>"##,
            x0 = x(0.0),
            x1 = x(1.0),
            y = y(at),
            label = x(0.0) - 6.0,
            text = y(at) + 4.0,
            tick = x(at),
            below = y(0.0) + 16.0,
            percent = 100.0 * at,
        );
    }
    let names: Vec<&str> =
        replay.rows.first().map(|r| r.hit_rates.iter().map(|h| h.0).collect()).unwrap_or_default();
    for ((i, name), colour) in names.iter().enumerate().zip(COLOURS.iter().cycle()) {
        let points: Vec<String> = replay
            .rows
            .iter()
            .filter_map(|row| Some(format!("{:.1},{:.1}", x(row.share), y(row.hit_rates.get(i)?.1))))
            .collect();
        let _ = writeln!(
            out,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>
<text x="{:.1}" y="{:.1}" fill="{colour}">{name}</text>"#,
            points.join(" "),
            x(1.0) + 8.0,
            TOP + 16.0 * (i as f64 + 1.0),
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::super::Row;
    use super::*;

    #[test]
    fn one_line_a_policy() {
        let row = |share: f64| Row {
            slots: (share * 100.0) as usize,
            share,
            hit_rates: vec![("lru", share / 2.0), ("belady", share)],
        };
        let replay = Replay { decoded: 5, asked: 9, random_routing: false, rows: vec![row(0.25), row(1.0)] };
        let text = svg(&replay);
        assert_eq!(text.matches("<polyline").count(), 2);
        assert!(text.contains(">belady</text>") && text.ends_with("</svg>\n"));
        // The best possible corner: all experts, all hits.
        assert!(text.contains("544.0,28.0"), "{text}");
    }
}
