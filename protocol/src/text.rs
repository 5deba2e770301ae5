//! Text that a peer wrote and a person reads. SPEC §3.2.
//!
//! Names are so narrow (`a-z 0-9 -`) that no two scripts can be mixed in one, so look-alikes of other scripts (Unicode
//! Technical Standard 39) have no place to be: nothing is compared, nothing is folded. What is left within ASCII (`0`
//! beside `o`, `rn` beside `m`) is why ids decide who somebody is and names never do. Descriptions may be in any script;
//! nothing is looked up or decided by them, and what they may not do is change how the text around them reads.

use std::fmt::Write as _;

/// Whether a text can be shown as it is: in one line, each of its characters visible or a plain space, read in one direction.
///
/// Refused are control characters (with them, escape sequences of terminals), separators of lines and paragraphs,
/// characters that change the direction of reading ("Trojan Source", CVE-2021-42574), and those that take no place:
/// zero-width spaces, soft hyphens, fillers, tags, unassigned ones that are ignored when shown. Joiners and the two
/// variation selectors of emoji stay: Persian, Hindi and emoji cannot be written without, and they reorder nothing.
pub fn is_display_safe(text: &str) -> bool {
    !text.chars().any(is_unsafe)
}

/// A text with what is not safe to show written as `\u{…}`, cut behind `bytes_max` bytes at the latest.
///
/// For what a peer sent and we quote; what is ours needs no escaping. Where it was cut it ends with `…`.
pub fn shown(text: &str, bytes_max: usize) -> String {
    const CUT: char = '…';
    let mut shown = String::new();
    for c in text.chars() {
        let before = shown.len();
        if is_unsafe(c) {
            write!(shown, "{}", c.escape_unicode()).expect("writing to a string does not fail");
        } else {
            shown.push(c);
        }
        if shown.len() > bytes_max {
            shown.truncate(before);
            let room = bytes_max.saturating_sub(CUT.len_utf8());
            while shown.len() > room {
                shown.pop();
            }
            if bytes_max >= CUT.len_utf8() {
                shown.push(CUT);
            }
            break;
        }
    }
    shown
}

/// Written as ranges of Unicode 16: Cc, Zl, Zp, `Bidi_Control`, and of `Default_Ignorable_Code_Point` all but
/// U+200C, U+200D, U+FE0E and U+FE0F; and what is no character for interchange.
fn is_unsafe(c: char) -> bool {
    let ignored = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0d}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}');
    let is_noncharacter = matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    c.is_control() || ignored || is_noncharacter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_safe() {
        for text in [
            "",
            "Notes of the household, 5 € a month",
            "Заметки семьи",
            "家族のメモ",
            "מחברת וגם دفتر",
            "می\u{200c}خواهم",
            "क्\u{200d}ष",
            "\u{1f469}\u{200d}\u{1f373} \u{2764}\u{fe0f}",
            "e\u{301}",
        ] {
            assert!(is_display_safe(text), "{text:?}");
        }
    }

    #[test]
    fn what_changes_the_text_around_it_is_not() {
        let unsafe_ones = [
            ("a bell", '\u{7}'),
            ("a new line", '\n'),
            ("an escape", '\u{1b}'),
            ("a delete", '\u{7f}'),
            ("a C1 control", '\u{9b}'),
            ("a line separator", '\u{2028}'),
            ("a paragraph separator", '\u{2029}'),
            ("an override to the left", '\u{202e}'),
            ("an embedding", '\u{202a}'),
            ("an isolate", '\u{2067}'),
            ("a mark of direction", '\u{200f}'),
            ("an Arabic mark of direction", '\u{61c}'),
            ("a zero-width space", '\u{200b}'),
            ("a word joiner", '\u{2060}'),
            ("a byte order mark", '\u{feff}'),
            ("a soft hyphen", '\u{ad}'),
            ("a Hangul filler", '\u{3164}'),
            ("a tag", '\u{e0041}'),
            ("a variation selector without a use", '\u{fe00}'),
            ("no character", '\u{ffff}'),
            ("no character of a higher plane", '\u{1fffe}'),
        ];
        for (what, c) in unsafe_ones {
            assert!(!is_display_safe(&format!("a{c}b")), "{what}");
            assert_eq!(shown(&c.to_string(), 99), c.escape_unicode().to_string(), "{what}");
        }
    }

    #[test]
    fn a_quote_is_cut_at_its_bound_and_between_characters() {
        assert_eq!(shown("notes", 5), "notes");
        assert_eq!(shown("notes!", 5), "no…");
        assert_eq!(shown("żółw", 6), "ż…");
        assert_eq!(shown("a\u{202e}b", 99), "a\\u{202e}b");
        assert_eq!(shown("a\u{202e}b", 8), "a…");
        assert_eq!(shown("notes", 2), "");
        for bytes_max in 0..40 {
            let text = shown("a\u{202e}ż家\n\u{1f469}\u{e0041} and more of it", bytes_max);
            assert!(text.len() <= bytes_max && is_display_safe(&text), "{text:?}");
        }
    }
}
