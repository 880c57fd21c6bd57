//! Which certificates of model servers are accepted, and what an operator can do about others.
//!
//! A certificate that an upstream's `ca_file` names is accepted as a server's own, exactly as it
//! is, even if it is the certificate of a CA: that is what `openssl req -x509` makes. Any other
//! certificate must be signed, as usual, by a CA of the system or of `ca_file`.

use std::error::Error as StdError;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, InvalidMessage, SignatureScheme};
use rustls_platform_verifier::Verifier;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::error::causes;
use crate::upstream::settings::UpstreamSettings;

/// The certificates of an upstream's `ca_file`.
#[derive(Debug, Default)]
pub(super) struct Named(Vec<CertificateDer<'static>>);

/// Accepts the certificates that are named, and what the system accepts with them as CAs.
#[derive(Debug)]
struct NamedOrUsual {
    named: Named,
    usual: Verifier,
}

impl Named {
    /// Errors in words for people.
    pub(super) fn read(config: &UpstreamSettings) -> Result<Self, String> {
        let Some(path) = &config.ca_file else {
            return Ok(Self::default());
        };
        let shown = path.display();
        let pem = std::fs::read(path)
            .map_err(|error| format!("its ca_file {shown} cannot be read: {error}"))?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let certificates =
            certificates.map_err(|_| format!("its ca_file {shown} is no PEM file"))?;
        if certificates.is_empty() {
            return Err(format!("its ca_file {shown} holds no certificate"));
        }
        Ok(Self(certificates))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A client that accepts these certificates, beside what the system accepts.
    /// Errors in words for people.
    pub(super) fn into_client(self) -> Result<rustls::ClientConfig, String> {
        let provider = CryptoProvider::get_default().map_or_else(
            || Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            Arc::clone,
        );
        let roots = self.0.iter().cloned();
        let usual = Verifier::new_with_extra_roots(roots, Arc::clone(&provider));
        let usual = usual.map_err(|error| {
            if self.is_empty() {
                format!("{error} (install the system's CA certificates, or set ca_file)")
            } else {
                format!("its ca_file holds what is no certificate: {error}")
            }
        })?;
        let verifier = NamedOrUsual { named: self, usual };
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(client)
    }
}

impl ServerCertVerifier for NamedOrUsual {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.named.0.contains(end_entity) {
            return verify_named(end_entity, server_name, now);
        }
        self.usual
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Verifies a certificate that an operator trusts by name. Who signed the certificate, and whether
/// it is one of a CA, says nothing more then. Its dates, its purpose and its names still count.
/// That the server has its key is shown by the handshake.
fn verify_named(
    der: &CertificateDer<'_>,
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, rustls::Error> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| CertificateError::BadEncoding)?;
    let seconds = |time: i64| {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            u64::try_from(time).unwrap_or(0),
        ))
    };
    let validity = certificate.validity();
    let not_before = seconds(validity.not_before.timestamp());
    let not_after = seconds(validity.not_after.timestamp());
    if now < not_before {
        let time = now;
        return Err(CertificateError::NotValidYetContext { time, not_before }.into());
    }
    if now > not_after {
        let time = now;
        return Err(CertificateError::ExpiredContext { time, not_after }.into());
    }
    let usage = certificate.extended_key_usage();
    let usage = usage.map_err(|_| CertificateError::BadEncoding)?;
    if usage.is_some_and(|usage| !usage.value.any && !usage.value.server_auth) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    if has_names(&certificate)? {
        verify_server_name(&ParsedCertificate::try_from(der)?, server_name)?;
    } else if !is_commonly_named(&certificate, &server_name.to_str()) {
        return Err(CertificateError::NotValidForName.into());
    }
    Ok(ServerCertVerified::assertion())
}

/// Whether a certificate names hosts where it should.
fn has_names(certificate: &X509Certificate<'_>) -> Result<bool, rustls::Error> {
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|_| CertificateError::BadEncoding)?;
    Ok(names.is_some_and(|names| {
        let mut names = names.value.general_names.iter();
        names.any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)))
    }))
}

/// Whether a certificate's common name is a host's. That counts, as with curl and Python, only
/// where the certificate names no host otherwise.
fn is_commonly_named(certificate: &X509Certificate<'_>, host: &str) -> bool {
    let name = certificate.subject().iter_common_name().last();
    let Some(name) = name.and_then(|name| name.as_str().ok()) else {
        return false;
    };
    let (name, host) = (name.trim_end_matches('.'), host.trim_end_matches('.'));
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    let pattern = name
        .strip_prefix("*.")
        .filter(|rest| !is_address && rest.contains('.'));
    match (pattern, host.split_once('.')) {
        (Some(pattern), Some((_, rest))) => rest.eq_ignore_ascii_case(pattern),
        _ => name.eq_ignore_ascii_case(host),
    }
}

/// What is wrong with TLS to a server, and what an operator can do. `None` if the error is of
/// another kind.
pub(super) fn advice(error: &(dyn StdError + 'static)) -> Option<String> {
    use CertificateError as Of;
    let error = causes(error).find_map(|error| error.downcast_ref());
    let problem = match error? {
        rustls::Error::InvalidCertificate(problem) => problem,
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            return Some(
                "the server does not speak TLS: if it speaks HTTP, begin base_url with http://"
                    .to_owned(),
            );
        }
        other => return Some(other.to_string()),
    };
    let text = problem.to_string();
    Some(match problem {
        Of::UnknownIssuer => "nobody who is trusted here has signed the server's certificate: name \
             in ca_file the certificate of its CA, or exactly the server's own certificate"
            .to_owned(),
        Of::NotValidForName | Of::NotValidForNameContext { .. } => {
            "the server's certificate is for another host than the one in base_url: write a name of \
             the certificate in base_url, or give the certificate a subjectAltName with that host"
                .to_owned()
        }
        Of::Expired | Of::ExpiredContext { .. } => {
            "the server's certificate has expired: renew it, or set this machine's clock if that \
             is wrong"
                .to_owned()
        }
        Of::NotValidYet | Of::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: set this machine's clock if that is wrong"
                .to_owned()
        }
        _ if text.contains("CaUsedAsEndEntity") => {
            "the server's certificate is one of a CA (openssl req -x509 makes such): name exactly \
             this certificate in ca_file, or give the server one that is not"
                .to_owned()
        }
        _ if text.contains("UnsupportedCertVersion") => {
            "the server's certificate is of version 1 of X.509: make one of version 3 (openssl req \
             -x509 does, with -addext subjectAltName=…)"
                .to_owned()
        }
        _ => format!("the server's certificate is not accepted: {text}"),
    })
}

#[cfg(test)]
mod tests;
