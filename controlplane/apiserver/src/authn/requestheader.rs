//! The user that a front proxy names in headers: believed with a certificate of the proxies' CA only.

use http::HeaderMap;

use super::UserInfo;

/// Which headers say who asks; names compare without case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Common names of proxies; empty: any that the CA signed.
    pub allowed: Vec<String>,
    /// The first of each that is there counts.
    pub user: Vec<String>,
    pub uid: Vec<String>,
    pub group: Vec<String>,
    pub extra_prefix: Vec<String>,
}

impl Default for Names {
    fn default() -> Self {
        let one = |text: &str| vec![text.to_owned()];
        Self {
            allowed: one("front-proxy-client"),
            user: one("X-Remote-User"),
            uid: one("X-Remote-Uid"),
            group: one("X-Remote-Group"),
            extra_prefix: one("X-Remote-Extra-"),
        }
    }
}

impl Names {
    pub fn allows(&self, common_name: &str) -> bool {
        self.allowed.is_empty() || self.allowed.iter().any(|allowed| allowed == common_name)
    }

    /// None when the headers name nobody.
    pub fn user_of(&self, headers: &HeaderMap) -> Option<UserInfo> {
        let all = |name: &str| -> Vec<String> { headers.get_all(name).iter().map(super::header_text).collect() };
        let first = |names: &[String]| names.iter().flat_map(|name| all(name)).find(|value| !value.is_empty());
        let mut user = UserInfo {
            name: first(&self.user)?,
            uid: first(&self.uid).unwrap_or_default(),
            groups: self.group.iter().flat_map(|name| all(name)).collect(),
            ..UserInfo::default()
        };
        for prefix in self.extra_prefix.iter().map(|prefix| prefix.to_lowercase()) {
            for name in headers.keys() {
                let Some(key) = name.as_str().strip_prefix(&prefix) else { continue };
                let key = crate::http::query::percent_decode(key, false);
                user.extra.entry(key).or_default().extend(all(name.as_str()));
            }
        }
        Some(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_name_a_user() {
        let mut headers = HeaderMap::new();
        assert_eq!(Names::default().user_of(&headers), None);
        for (name, value) in [
            ("x-remote-user", "jane"),
            ("x-remote-group", "dev"),
            ("x-remote-group", "ops"),
            ("x-remote-extra-example.com%2fa", "1"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let user = Names::default().user_of(&headers).unwrap();
        assert_eq!((user.name.as_str(), user.groups.as_slice()), ("jane", &["dev".to_owned(), "ops".to_owned()][..]));
        assert_eq!(user.extra["example.com/a"], ["1"]);
        headers.append("x-remote-group", "büro".parse().unwrap());
        assert_eq!(Names::default().user_of(&headers).unwrap().groups, ["dev", "ops", "büro"]);
        assert!(Names { allowed: Vec::new(), ..Names::default() }.allows("any"));
        assert!(!Names::default().allows("any"));
    }
}
