//! Lists page by page, the newest first. A cursor is the last item's place, so that pages stay right when things come
//! and go between them.

use std::collections::HashMap;

use super::refusal::Refusal;
use crate::proto::limits::PAGE_MAX;
use crate::proto::resources::Page;

/// Items of a page whose size nobody chose.
const PAGE_DEFAULT: usize = 20;

/// Where an item is in its list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Seconds since 1970.
    pub created: u64,
    pub id: String,
}

impl Key {
    fn encode(&self) -> String {
        format!("{:x}-{}", self.created, self.id)
    }

    fn decode(text: &str) -> Option<Key> {
        let (created, id) = text.split_once('-')?;
        Some(Key { created: u64::from_str_radix(created, 16).ok()?, id: id.to_string() })
    }
}

/// The page that `limit` and `cursor` of a query ask for. Errors: `invalid_field`.
pub fn page<T>(items: Vec<T>, key: impl Fn(&T) -> Key, query: &HashMap<String, String>) -> Result<Page<T>, Refusal> {
    let wrong = |field: &'static str, value: &str, allowed: String| {
        let shown: String = value.chars().take(64).collect();
        let detail = format!("{field}: {shown:?} is not allowed; allowed: {allowed}.");
        Refusal::new("invalid_field", detail).about(field, allowed)
    };
    let limit = match query.get("limit") {
        None => PAGE_DEFAULT,
        Some(text) => match text.parse() {
            Ok(n) if (1..=PAGE_MAX).contains(&n) => n,
            _ => return Err(wrong("limit", text, format!("1 to {PAGE_MAX}"))),
        },
    };
    let after = match query.get("cursor") {
        None => None,
        Some(text) => Some(Key::decode(text).ok_or_else(|| wrong("cursor", text, "a page's next".to_string()))?),
    };
    let mut items: Vec<T> = items.into_iter().filter(|i| after.as_ref().is_none_or(|a| key(i) < *a)).collect();
    items.sort_by_key(|i| std::cmp::Reverse(key(i)));
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|i| key(i).encode());
    Ok(Page { items, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_everything_once_whatever_goes_in_between() {
        let item = |n: u64| Key { created: n / 3, id: format!("{n:02}") };
        let mut all: Vec<Key> = (0..25).map(item).collect();
        let mut query = HashMap::from([("limit".to_string(), "10".to_string())]);
        let mut seen = Vec::new();
        loop {
            let Page { items, next } = page(all.clone(), Key::clone, &query).expect("a good query");
            seen.extend(items);
            // The last item of the page is deleted before the next one is asked for.
            let last = seen.last().cloned().expect("not empty");
            all.retain(|k| *k != last);
            match next {
                Some(next) => query.insert("cursor".to_string(), next),
                None => break,
            };
        }
        let mut expected: Vec<Key> = (0..25).map(item).collect();
        expected.reverse();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_query_that_makes_no_sense_is_refused() {
        for (name, value) in [("limit", "0"), ("limit", "101"), ("limit", "x"), ("cursor", ""), ("cursor", "zz-1")] {
            let query = HashMap::from([(name.to_string(), value.to_string())]);
            let refusal = page(Vec::<Key>::new(), Key::clone, &query).expect_err("makes no sense");
            assert_eq!(refusal.problem.field.as_deref(), Some(name));
        }
    }
}
