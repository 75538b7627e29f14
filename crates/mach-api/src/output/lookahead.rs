//! Which tags of a text are tags. A tag is one where the format writes it, on a line of its own; inside a line it is text.
//! What a text says depends on what follows, so some answers have to wait for more of it.

use super::prose::blank;
use super::tags::{Head, Tags};
use super::{ToolSchemas, is_name};

/// Bytes of a tag's head, beyond which it is none.
const LONGEST_HEAD: usize = 512;

/// An answer about a text that may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look<T> {
    Yes(T),
    No,
    /// More text tells.
    More,
}

/// A tag, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tag {
    WrapperOpen,
    WrapperClose,
    CallOpen(Head),
    CallClose,
    ParameterOpen(Head),
    ParameterClose,
}

/// A call's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opening {
    /// Bytes up to the end of its head.
    pub(super) bytes: usize,
    pub(super) name: String,
    /// It has a wrapper of its own.
    pub(super) wrapped: bool,
}

/// Where a value ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// At this byte, with a closing tag of that many bytes.
    Closed(usize, usize),
    /// At this byte, where something else of the format begins.
    Cut(usize),
    /// Not before this byte.
    Open(usize),
}

/// Looks at a text, which is all there is if it has `ended`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lookahead<'a> {
    pub(super) tags: &'static Tags,
    pub(super) schemas: &'a ToolSchemas,
    pub(super) ended: bool,
}

/// What is known of the call that a value belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inside<'a> {
    pub(super) function: &'a str,
    /// Parameters that it has, the one at hand included.
    pub(super) given: &'a [String],
    /// Between a wrapper's tags.
    pub(super) wrapped: bool,
    /// The value's text begins where a line begins.
    pub(super) line_start: bool,
    /// The value may be a string, which may speak of tags.
    pub(super) string: bool,
}

impl Lookahead<'_> {
    /// The tag that `text` begins with, and its bytes.
    pub(super) fn tag(&self, text: &str) -> Look<(Tag, usize)> {
        let tags = self.tags;
        let open = tags.wrapper_open.iter().map(|tag| (*tag, Tag::WrapperOpen));
        let close = tags.wrapper_close.iter().map(|tag| (*tag, Tag::WrapperClose));
        let inner = [(tags.call_close, Tag::CallClose), (tags.parameter_close, Tag::ParameterClose)];
        let mut more = false;
        for (marker, tag) in open.chain(close).chain(inner) {
            if text.starts_with(marker) {
                return Look::Yes((tag, marker.len()));
            }
            more |= marker.starts_with(text);
        }
        type Make = fn(Head) -> Tag;
        let heads: [(&str, Make); 2] =
            [(tags.call_open, Tag::CallOpen), (tags.parameter_open, Tag::ParameterOpen)];
        for (marker, make) in heads {
            if let Some(rest) = text.strip_prefix(marker) {
                return match self.head(rest) {
                    Look::Yes((head, bytes)) => Look::Yes((make(head), marker.len() + bytes)),
                    Look::No => Look::No,
                    Look::More => Look::More,
                };
            }
            more |= marker.starts_with(text);
        }
        if more && !self.ended { Look::More } else { Look::No }
    }

    fn head(&self, text: &str) -> Look<(Head, usize)> {
        match text.find(['>', '<', '\n']) {
            Some(at) if at <= LONGEST_HEAD && text[at..].starts_with('>') => {
                (self.tags.head)(&text[..at]).map_or(Look::No, |head| Look::Yes((head, at + 1)))
            }
            None if text.len() <= LONGEST_HEAD && !self.ended => Look::More,
            _ => Look::No,
        }
    }

    fn declared(&self, head: &Head) -> bool {
        is_name(&head.name) && self.schemas.declares(&head.name)
    }

    /// What stands behind white space. `None`: nothing yet.
    fn behind(&self, text: &str) -> Option<Look<Tag>> {
        let rest = &text[blank(text)..];
        if rest.is_empty() {
            return None;
        }
        Some(match self.tag(rest) {
            Look::Yes((tag, _)) => Look::Yes(tag),
            Look::No => Look::No,
            Look::More => Look::More,
        })
    }

    /// Whether a call begins with the tag that `text` begins with. `line_start`: nothing stands before it in its line.
    /// `wrapped`: it is between a wrapper's tags.
    pub(super) fn opening(&self, text: &str, line_start: bool, wrapped: bool) -> Look<Opening> {
        let (mut at, mut opened) = (0, false);
        let head = loop {
            match self.tag(&text[at..]) {
                Look::Yes((Tag::WrapperOpen, bytes)) => {
                    opened = true;
                    at += bytes;
                    at += blank(&text[at..]);
                    if text.len() == at && !self.ended {
                        return Look::More;
                    }
                }
                Look::Yes((Tag::CallOpen(head), bytes)) if self.declared(&head) => {
                    at += bytes;
                    break head;
                }
                Look::More => return Look::More,
                _ => return Look::No,
            }
        };
        let around = wrapped || opened;
        if !(around || self.tags.bare && line_start) {
            return Look::No;
        }
        let rest = &text[at..];
        match self.behind(rest) {
            None if !self.ended => return Look::More,
            // A call without parameters that lacks its end.
            None if !around => return Look::No,
            None => {}
            Some(Look::Yes(Tag::ParameterOpen(_) | Tag::CallClose)) => {}
            Some(Look::Yes(Tag::WrapperClose)) if around => {}
            Some(Look::More) => return Look::More,
            Some(_) => return Look::No,
        }
        // All in one line: it is a call if the line holds nothing behind it.
        let lines = text[..at + blank(rest)].contains('\n');
        let alone = line_start && !rest.starts_with(self.tags.call_close);
        if !wrapped && !lines && !alone {
            match self.block(text, opened) {
                Look::Yes(end) => match self.line_ends(&text[end..]) {
                    Look::Yes(()) => {}
                    Look::No => return Look::No,
                    Look::More => return Look::More,
                },
                Look::No => return Look::No,
                Look::More => return Look::More,
            }
        }
        Look::Yes(Opening { bytes: at, name: head.name, wrapped: opened })
    }

    /// Where a call that `text` begins with ends, with its wrapper if it has one.
    fn block(&self, text: &str, wrapped: bool) -> Look<usize> {
        let Some(at) = text.find(self.tags.call_close) else {
            return if self.ended { Look::No } else { Look::More };
        };
        let at = at + self.tags.call_close.len();
        if !wrapped {
            return Look::Yes(at);
        }
        let gap = blank(&text[at..]);
        match self.tag(&text[at + gap..]) {
            Look::Yes((Tag::WrapperClose, bytes)) => Look::Yes(at + gap + bytes),
            Look::More => Look::More,
            _ if text.len() == at + gap && !self.ended => Look::More,
            _ => Look::Yes(at),
        }
    }

    /// Whether nothing but white space and tags stands in the rest of the line.
    fn line_ends(&self, text: &str) -> Look<()> {
        let text = text.trim_start_matches([' ', '\t', '\r']);
        match text.chars().next() {
            None if self.ended => Look::Yes(()),
            None => Look::More,
            Some('\n') => Look::Yes(()),
            Some(_) => match self.tag(text) {
                Look::Yes((Tag::WrapperOpen | Tag::CallOpen(_) | Tag::ParameterOpen(_), _)) => Look::Yes(()),
                Look::Yes((_, bytes)) => self.line_ends(&text[bytes..]),
                Look::More => Look::More,
                Look::No => Look::No,
            },
        }
    }

    /// Where the value that `text` begins with ends.
    pub(super) fn value_end(&self, text: &str, inside: &Inside<'_>) -> End {
        let mut from = 0;
        while let Some(at) = text[from..].find('<').map(|at| from + at) {
            let (tag, bytes) = match self.tag(&text[at..]) {
                Look::Yes(found) => found,
                Look::More => return End::Open(self.held(text, at, inside)),
                Look::No => {
                    from = at + 1;
                    continue;
                }
            };
            let own = own_line(text, at, inside.line_start);
            let after = at + bytes;
            let real = match &tag {
                Tag::ParameterClose => self.closes(&text[after..], inside),
                Tag::ParameterOpen(_) if own => self.next_parameter(&text[after..], inside),
                Tag::CallClose => self.ends_call(&text[after..], own, inside),
                Tag::WrapperClose if own => Look::Yes(()),
                Tag::WrapperClose if inside.wrapped => self.ends_all(&text[after..]),
                Tag::WrapperOpen | Tag::CallOpen(_) if own => {
                    match self.next_call(&text[at..], inside) {
                        Look::Yes(None) => Look::Yes(()),
                        // A call that the value speaks of.
                        Look::Yes(Some(end)) => {
                            from = at + end;
                            continue;
                        }
                        Look::No => Look::No,
                        Look::More => Look::More,
                    }
                }
                _ => Look::No,
            };
            match (real, tag) {
                (Look::Yes(()), Tag::ParameterClose) => return End::Closed(at, bytes),
                (Look::Yes(()), _) => return End::Cut(at),
                (Look::More, _) => return End::Open(self.held(text, at, inside)),
                (Look::No, _) => from = after,
            }
        }
        End::Open(self.held(text, text.len(), inside))
    }

    /// Up to where a text is a value for sure, if a tag may stand at `at`: the line break before a tag is no part of a value.
    fn held(&self, text: &str, at: usize, inside: &Inside<'_>) -> usize {
        let line = text[..at].rfind('\n');
        match line {
            Some(line) if text[line..at].trim().is_empty() => line,
            None if inside.line_start && text[..at].trim().is_empty() => 0,
            _ => at,
        }
    }

    /// Whether the closing tag of a parameter that `text` stands behind ends the value: something of the format follows.
    fn closes(&self, text: &str, inside: &Inside<'_>) -> Look<()> {
        if !inside.string {
            return self.line_ends(text);
        }
        let rest = text.trim_start_matches([' ', '\t', '\r']);
        let gap = blank(rest);
        if rest.len() == gap {
            return if self.ended { Look::Yes(()) } else { Look::More };
        }
        match self.tag(&rest[gap..]) {
            Look::Yes((Tag::ParameterOpen(head), bytes)) => match self.fresh(&head, inside) {
                true => Look::Yes(()),
                false => self.next_parameter(&rest[gap + bytes..], inside),
            },
            Look::Yes((Tag::CallOpen(head), _)) if !self.declared(&head) => Look::No,
            // In the same line: the line has to end so.
            Look::Yes((Tag::CallClose | Tag::WrapperClose | Tag::ParameterClose, bytes)) if gap == 0 => {
                self.line_ends(&rest[bytes..])
            }
            Look::Yes(_) => Look::Yes(()),
            Look::More => Look::More,
            Look::No => Look::No,
        }
    }

    /// A parameter that the function has and the call has not yet.
    fn fresh(&self, head: &Head, inside: &Inside<'_>) -> bool {
        !inside.given.contains(&head.name) && self.schemas.knows(inside.function, &head.name)
    }

    /// Whether a parameter begins with the tag that `text` stands behind: its own end is followed by something of the format.
    fn next_parameter(&self, text: &str, inside: &Inside<'_>) -> Look<()> {
        let mut from = 0;
        while let Some(at) = text[from..].find('<').map(|at| from + at) {
            let own = own_line(text, at, false);
            match self.tag(&text[at..]) {
                Look::Yes((Tag::ParameterClose, bytes)) => {
                    let rest = &text[at + bytes..];
                    match self.behind(rest) {
                        None if self.ended => return Look::Yes(()),
                        None | Some(Look::More) => return Look::More,
                        Some(Look::Yes(Tag::CallOpen(head))) if !self.declared(&head) => return Look::No,
                        Some(Look::Yes(_)) => return Look::Yes(()),
                        // Inside a line it is text.
                        Some(Look::No) if !own && !matches!(self.line_ends(rest), Look::Yes(())) => {}
                        Some(Look::No) => return Look::No,
                    }
                    from = at + bytes;
                }
                Look::Yes((Tag::ParameterOpen(_) | Tag::CallClose | Tag::WrapperClose, _)) if own => {
                    return Look::Yes(());
                }
                Look::Yes((Tag::WrapperOpen | Tag::CallOpen(_), _)) if own => {
                    match self.next_call(&text[at..], inside) {
                        Look::Yes(Some(end)) => from = at + end,
                        Look::Yes(None) => return Look::Yes(()),
                        Look::No => from = at + 1,
                        Look::More => return Look::More,
                    }
                }
                Look::More => return Look::More,
                _ => from = at + 1,
            }
        }
        if self.ended { Look::Yes(()) } else { Look::More }
    }

    /// Whether the end of a function that `text` stands behind ends the value too.
    fn ends_call(&self, text: &str, own: bool, inside: &Inside<'_>) -> Look<()> {
        if own && !inside.wrapped {
            return Look::Yes(());
        }
        let gap = blank(text);
        if text.len() == gap {
            let yes = own && self.ended;
            return if yes {
                Look::Yes(())
            } else if self.ended {
                Look::No
            } else {
                Look::More
            };
        }
        match self.tag(&text[gap..]) {
            Look::Yes((Tag::WrapperClose, bytes)) if !own => self.ends_all(&text[gap + bytes..]),
            Look::Yes((Tag::WrapperClose | Tag::CallClose | Tag::WrapperOpen, _)) if own => Look::Yes(()),
            Look::Yes((Tag::CallOpen(head), _)) if own && self.declared(&head) => Look::Yes(()),
            Look::More => Look::More,
            _ => Look::No,
        }
    }

    /// Whether the answer, or another call, follows the end of a call that `text` stands behind.
    fn ends_all(&self, text: &str) -> Look<()> {
        match self.behind(text) {
            None if self.ended => Look::Yes(()),
            None | Some(Look::More) => Look::More,
            Some(Look::Yes(Tag::WrapperOpen | Tag::WrapperClose)) => Look::Yes(()),
            Some(_) => Look::No,
        }
    }

    /// Whether another call begins with the tag that `text` begins with, and the value has no end; or else, with its end, a
    /// call that the value speaks of. It is one if what follows it is not of the format.
    fn next_call(&self, text: &str, inside: &Inside<'_>) -> Look<Option<usize>> {
        let mut at = 0;
        let mut wrapped = false;
        let declared = loop {
            match self.tag(&text[at..]) {
                Look::Yes((Tag::WrapperOpen, bytes)) => {
                    wrapped = true;
                    at += bytes;
                    at += blank(&text[at..]);
                    if at == text.len() && !self.ended {
                        return Look::More;
                    }
                }
                Look::Yes((Tag::CallOpen(head), bytes)) => {
                    at += bytes;
                    break self.declared(&head);
                }
                Look::More => return Look::More,
                _ => return Look::No,
            }
        };
        let end = match self.block(&text[at..], wrapped) {
            Look::Yes(end) => at + end,
            Look::No if declared => return Look::Yes(None),
            Look::No => return Look::No,
            Look::More => return Look::More,
        };
        if !declared {
            return Look::Yes(Some(end));
        }
        match self.behind(&text[end..]) {
            None if self.ended => Look::Yes(None),
            None | Some(Look::More) => Look::More,
            Some(Look::Yes(Tag::WrapperOpen)) => Look::Yes(None),
            Some(Look::Yes(Tag::CallOpen(head))) if self.declared(&head) => Look::Yes(None),
            Some(Look::Yes(Tag::WrapperClose)) if inside.wrapped && !wrapped => Look::Yes(None),
            Some(_) => Look::Yes(Some(end)),
        }
    }
}

/// Whether nothing but white space stands before `at` in its line.
fn own_line(text: &str, at: usize, line_start: bool) -> bool {
    match text[..at].rfind('\n') {
        Some(line) => text[line..at].trim().is_empty(),
        None => line_start && text[..at].trim().is_empty(),
    }
}
