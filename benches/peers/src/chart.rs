//! Line charts as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub struct Line {
    pub name: String,
    /// Lines of the same work have the same colour.
    pub colour: usize,
    /// The lines of this crate are thick, those of the peer thin.
    pub is_ours: bool,
    pub points: Vec<(f64, f64)>,
}

const COLOURS: [RGBColor; 3] = [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 140, 60)];

/// Draws a chart. Both axes are logarithmic. `marks` are the labels of the horizontal axis.
pub fn draw(file: &Path, title: &str, axes: [&str; 2], marks: &[(f64, &str)], lines: &[Line]) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw {}: {error}", file.display());
    let all = || lines.iter().flat_map(|line| &line.points);
    let least = |pick: fn(&(f64, f64)) -> f64| all().map(pick).fold(f64::INFINITY, f64::min);
    let most = |pick: fn(&(f64, f64)) -> f64| all().map(pick).fold(0.0, f64::max);
    let (left, right) = (least(|point| point.0), most(|point| point.0));
    let (bottom, top) = (least(|point| point.1) / 1.5, most(|point| point.1) * 1.5);

    let root = SVGBackend::new(file, (860, 480)).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .margin_right(230)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d((left..right).log_scale(), (bottom..top).log_scale())
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_label_formatter(&|_| String::new())
        .y_labels(12)
        .y_label_formatter(&|rate| match *rate {
            rate @ 1000.0.. => format!("{:.0} k", rate / 1000.0),
            rate => format!("{rate:.0}"),
        })
        .x_desc(axes[0])
        .y_desc(axes[1])
        .draw()
        .map_err(|error| failed(&error))?;
    for (at, mark) in marks {
        let style = ("sans-serif", 12).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
        let (x, y) = chart.backend_coord(&(*at, bottom));
        root.draw_text(mark, &style, (x, y + 5)).map_err(|error| failed(&error))?;
    }
    for (number, line) in lines.iter().enumerate() {
        let style = COLOURS[line.colour % COLOURS.len()].stroke_width(if line.is_ours { 3 } else { 1 });
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))
            .map_err(|error| failed(&error))?;
        let dots = line.points.iter().map(|point| Circle::new(*point, 3, style.filled()));
        chart.draw_series(dots).map_err(|error| failed(&error))?;
        // The legend is to the right of the chart, with one row per line.
        let y = 50 + 22 * number as i32;
        root.draw(&PathElement::new([(650, y), (680, y)], style)).map_err(|error| failed(&error))?;
        let text = ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw_text(&line.name, &text, (688, y)).map_err(|error| failed(&error))?;
    }
    root.present().map_err(|error| failed(&error))
}
