//! Values as people read them. Pure, so that every screen is a function of what is shown and the time.

use std::fmt::{Display, Write};

/// What peers wrote, made harmless: control characters and those that reorder text are shown as escapes.
///
/// A terminal obeys control sequences from wherever they come; nobody else gets to write them to ours.
pub fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for character in text.chars() {
        let reorders = matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if character.is_control() || reorders {
            cleaned.extend(character.escape_default());
        } else {
            cleaned.push(character);
        }
    }
    cleaned
}

/// Rows in columns, two spaces apart, under a heading; nothing at the ends of lines.
pub fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(heading);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
    text
}

/// Facts one to a line, the names in a column of their own.
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in facts {
        let line = format!("{name:width$}  {}", value.replace('\n', &format!("\n{:width$}  ", "")));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `1 member`, `2 members`.
pub fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// A length of time, to two places: `2 h 3 min`.
pub fn span(ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let seconds = ms / 1000;
    let Some(first) = UNITS.iter().position(|(length, _)| seconds >= *length) else {
        return format!("{ms} ms");
    };
    let (length, unit) = UNITS[first];
    let mut text = format!("{} {unit}", seconds / length);
    if let Some((next, unit)) = UNITS.get(first + 1)
        && !(seconds % length / next).eq(&0)
    {
        let _ = write!(text, " {} {unit}", seconds % length / next);
    }
    text
}

/// How long ago, roughly: `3 min ago`, `now`.
pub fn ago(then_ms: u64, now_ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let seconds = now_ms.saturating_sub(then_ms) / 1000;
    match UNITS.iter().find(|(length, _)| seconds >= *length) {
        Some((length, unit)) => format!("{} {unit} ago", seconds / length),
        None => "now".to_owned(),
    }
}

/// A moment in UTC: `2026-11-22 14:00 UTC`.
pub fn when(wall_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(wall_ms));
    // Formatting fails above the year 9999 only.
    const LAST_MS: u64 = 253_402_300_799_000;
    match time.filter(|_| wall_ms <= LAST_MS) {
        Some(time) => {
            let text = humantime::format_rfc3339_seconds(time).to_string();
            format!("{} UTC", text[..16].replace('T', " "))
        }
        None => "in the far future".to_owned(),
    }
}

/// A number of bytes in powers of 1024.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Milliseconds with as many places as mean something.
pub fn millis(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// The beginning of an id: enough to name it in a command.
pub fn short_id(id: &impl Display) -> String {
    let text = id.to_string();
    let prefix = text.find('1').map_or(0, |place| place + 1);
    text.chars().take(prefix + 8).collect()
}

/// The text as a QR code of half blocks, dark on light whatever the terminal's colours are, with its quiet zone.
/// None when it does not fit into `columns`.
pub fn qr(text: &str, columns: usize) -> Option<String> {
    let code = qrcode::QrCode::with_error_correction_level(text.as_bytes(), qrcode::EcLevel::L).ok()?;
    let picture = code
        .render::<qrcode::render::unicode::Dense1x2>()
        .dark_color(qrcode::render::unicode::Dense1x2::Light)
        .light_color(qrcode::render::unicode::Dense1x2::Dark)
        .quiet_zone(true)
        .build();
    let fits = picture.lines().all(|line| line.chars().count() <= columns);
    fits.then(|| picture + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_others_never_reach_the_terminal() {
        assert_eq!(clean("notes\u{1b}[2J\r\n"), "notes\\u{1b}[2J\\r\\n");
        assert_eq!(clean("a\u{202e}b\u{9b}c"), "a\\u{202e}b\\u{9b}c");
        assert_eq!(clean("Küche 🏠"), "Küche 🏠");
    }

    #[test]
    fn columns_are_aligned_and_no_wider_than_needed() {
        let rows = [["attic".to_owned(), "steward".to_owned()], ["ü".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "ROLE"], &rows), "NAME   ROLE\nattic  steward\nü\n");
    }

    #[test]
    fn facts_stand_in_a_column() {
        let shown = facts(&[("node", "attic".to_owned()), ("reachable", "yes\nno".to_owned())]);
        assert_eq!(shown, "node       attic\nreachable  yes\n           no\n");
        assert_eq!(facts(&[("reason", String::new())]), "reason\n", "nothing at the ends of lines");
    }

    #[test]
    fn spans_and_moments_read_well() {
        let spans = [999, 1000, 61_000, 3_600_000, 3_725_000, 90_000_000].map(span);
        assert_eq!(spans, ["999 ms", "1 s", "1 min 1 s", "1 h", "1 h 2 min", "1 d 1 h"]);
        assert_eq!(ago(1000, 1500), "now");
        assert_eq!(ago(0, 7_300_000), "2 h ago");
        assert_eq!(when(1_795_356_000_000), "2026-11-22 14:00 UTC");
        assert_eq!(when(u64::MAX), "in the far future");
        assert_eq!([0, 1023, 1024, 200 * 1024 * 1024].map(bytes), ["0 B", "1023 B", "1.0 KiB", "200.0 MiB"]);
        assert_eq!((millis(0.44), millis(80.4)), ("0.4 ms".to_owned(), "80 ms".to_owned()));
    }

    #[test]
    fn short_ids_keep_what_a_command_needs() {
        let id = kos_protocol::id::MemberId::from_bytes([7; 32]);
        let short = short_id(&id);
        assert!(id.to_string().starts_with(&short) && short.len() == "kos1".len() + 8, "{short}");
    }

    #[test]
    fn a_qr_code_is_drawn_only_where_it_fits() {
        let code = "KAI:JOIN/".to_owned() + &"A2".repeat(200);
        let picture = qr(&code, 200).unwrap();
        let width = picture.lines().next().unwrap().chars().count();
        assert!(picture.lines().all(|line| line.chars().count() == width));
        assert!(width < 100, "alphanumeric mode keeps it small: {width}");
        assert_eq!(qr(&code, width - 1), None);
    }
}
