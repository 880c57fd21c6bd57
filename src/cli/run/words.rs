//! What the user calls things: flags, where no configuration names them.

/// Words of the configuration, and what the user gave in their place.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    /// What gave the address; `None`: the configuration.
    address: Option<&'static str>,
    /// What gives the key.
    key: &'static str,
}

impl Words {
    pub(super) fn of_flags() -> Words {
        Words {
            address: Some("--upstream"),
            key: "--api-key-env",
        }
    }

    /// An address or a key from elsewhere, such as a variable.
    pub(super) fn of(address: &'static str, key: &'static str) -> Words {
        Words {
            address: Some(address),
            key,
        }
    }

    /// A message of the engine or of the configuration, in the words of the user.
    pub(super) fn in_flags(&self, text: &str) -> String {
        let Some(address) = self.address else {
            return text.to_owned();
        };
        let key = self.key;
        [
            ("its base_url", address),
            ("base_url", address),
            ("its api_key_env or api_key_file", key),
            ("`api_key_env` or `api_key_file`", key),
            ("`api_key_env`", key),
            ("`headers_env`", "--header"),
            ("--upstream", address),
            ("--api-key-env", key),
        ]
        .into_iter()
        .fold(text.to_owned(), |text, (word, ours)| {
            text.replace(word, ours)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_what_the_user_gave() {
        let advice = "check its base_url, or its api_key_env or api_key_file";
        assert_eq!(Words::default().in_flags(advice), advice);
        assert_eq!(
            Words::of_flags().in_flags(advice),
            "check --upstream, or --api-key-env"
        );
        assert_eq!(
            Words::of("A_URL", "A_KEY").in_flags(advice),
            "check A_URL, or A_KEY"
        );
    }
}
