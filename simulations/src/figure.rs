//! Figures as files: CSV for programs, SVG for people.

use std::fmt::Write;

/// A line of a plot.
#[derive(Clone, Debug)]
pub struct Series {
    /// What it is called.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64, String)>,
}

/// A plot of lines with a label at each point.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// The horizontal axis.
    pub x: String,
    /// The vertical axis.
    pub y: String,
    /// The lines.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 460.0;
const MARGIN: f64 = 64.0;
/// Colours that people with any sight tell apart (Okabe and Ito 2008).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

impl Plot {
    /// The picture.
    pub fn to_svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x_max = points().map(|(x, ..)| *x).fold(1.0, f64::max) * 1.08;
        let y_max = points().map(|(_, y, _)| *y).fold(1.0, f64::max) * 1.08;
        let across = |x: f64| MARGIN + x / x_max * (WIDTH - 2.0 * MARGIN);
        let up = |y: f64| HEIGHT - MARGIN - y / y_max * (HEIGHT - 2.0 * MARGIN);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{MARGIN}\" y=\"28\" \
             font-size=\"15\">{}</text>\n",
            self.title
        );
        let (left, bottom) = (across(0.0), up(0.0));
        for tick in 1..=5 {
            let (x, y) = (x_max * f64::from(tick) / 5.0, y_max * f64::from(tick) / 5.0);
            let _ = writeln!(
                svg,
                "<path d=\"M{left:.1} {:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{y:.1}</text><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x:.0}</text>",
                up(y),
                across(x_max),
                left - 6.0,
                up(y) + 4.0,
                across(x),
                bottom + 18.0
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"M{left:.1} {:.1}V{bottom:.1}H{:.1}\" stroke=\"black\" fill=\"none\"/>\n<text x=\"{:.1}\" \
             y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n<text x=\"{left:.1}\" y=\"{:.1}\">{}</text>",
            up(y_max),
            across(x_max),
            WIDTH / 2.0,
            HEIGHT - 16.0,
            self.x,
            up(y_max) - 8.0,
            self.y
        );
        for (number, series) in self.series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let path: Vec<String> =
                series.points.iter().map(|(x, y, _)| format!("{:.1} {:.1}", across(*x), up(*y))).collect();
            let _ = writeln!(
                svg,
                "<path d=\"M{}\" stroke=\"{colour}\" fill=\"none\" stroke-width=\"2\"/>",
                path.join("L")
            );
            for (x, y, label) in &series.points {
                let (x, y) = (across(*x), up(*y));
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/><text x=\"{:.1}\" \
                     y=\"{:.1}\">{label}</text>",
                    x + 6.0,
                    y - 6.0
                );
            }
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\" text-anchor=\"end\">{}</text>",
                across(x_max),
                up(y_max) + 16.0 * (number as f64 + 1.0),
                series.name
            );
        }
        svg + "</svg>\n"
    }
}
