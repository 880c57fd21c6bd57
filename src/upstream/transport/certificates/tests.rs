//! Certificates that an operator has named.

use std::io;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};

use rustls::pki_types::PrivateKeyDer;

use super::*;

/// As `openssl req -x509` makes it: of a CA, with these subjectAltNames, for `CN=gpu.internal`.
fn made_by_openssl(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("are names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "gpu.internal");
    change(&mut params);
    let key = KeyPair::generate().expect("makes a key");
    let certificate = params.self_signed(&key).expect("makes a certificate");
    certificate.der().to_vec()
}

/// 2026-01-01.
fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_hours(490_896))
}

/// What is said to an operator; nothing where the certificate is accepted.
fn refused(der: Vec<u8>, host: &str) -> Option<String> {
    let host = ServerName::try_from(host.to_owned()).expect("is a name");
    let verified = verify_named(&CertificateDer::from(der), &host, now());
    let error = verified.err()?;
    // As the layers above wrap it.
    advice(&io::Error::other(io::Error::other(error)))
}

#[test]
fn a_named_certificate_is_accepted_though_it_is_one_of_a_ca() {
    let der = made_by_openssl(&["gpu.internal", "10.0.0.5"], |_| {});
    for host in ["gpu.internal", "GPU.internal", "10.0.0.5"] {
        assert_eq!(refused(der.clone(), host), None, "{host}");
    }
}

#[test]
fn its_common_name_counts_where_it_names_no_host_otherwise() {
    let named = |name: &'static str| {
        made_by_openssl(&[], move |params| {
            params.distinguished_name.push(DnType::CommonName, name);
        })
    };
    for (name, host, is_accepted) in [
        ("gpu.internal", "gpu.internal", true),
        ("gpu.internal", "cpu.internal", false),
        ("10.0.0.5", "10.0.0.5", true),
        ("10.0.0.5", "10.0.0.6", false),
        ("*.gpu.internal", "one.gpu.internal", true),
        ("*.gpu.internal", "gpu.internal", false),
        ("*.gpu.internal", "one.two.gpu.internal", false),
        ("*.internal", "gpu.internal", false),
    ] {
        let refused = refused(named(name), host);
        assert_eq!(refused.is_none(), is_accepted, "{name} {host}: {refused:?}");
    }
    // It names another, so its common name does not count.
    let other = made_by_openssl(&["other.internal"], |_| {});
    let refused = refused(other, "gpu.internal").expect("is refused");
    assert!(refused.contains("subjectAltName"), "{refused}");
}

/// What becomes of the first greeting of a server that shows this certificate and signs with this
/// key. The certificate is named.
fn greeted(
    shown: &CertificateDer<'static>,
    key: &KeyPair,
    version: &'static rustls::SupportedProtocolVersion,
) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("is a key");
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("is known");
    let key = rustls::sign::CertifiedKey::new(vec![shown.clone()], key);
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("is supported")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
    let client = Named(vec![shown.clone()])
        .into_client()
        .expect("is possible");
    let host = ServerName::try_from("gpu.internal").expect("is a name");
    let mut client = rustls::ClientConnection::new(Arc::new(client), host)?;
    let mut server = rustls::ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("is written");
        server.read_tls(&mut bytes.as_slice()).expect("is read");
        server.process_new_packets()?;
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("is written");
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).expect("is read");
            client.process_new_packets()?;
        }
    }
    Ok(())
}

#[test]
fn a_server_that_shows_a_named_certificate_must_have_its_key() {
    let [own, other] = [(); 2].map(|()| KeyPair::generate().expect("makes a key"));
    let params = CertificateParams::new(["gpu.internal".to_owned()]).expect("is a name");
    let shown = params.self_signed(&own).expect("makes a certificate");
    let shown = shown.der().clone();
    for version in rustls::ALL_VERSIONS {
        assert_eq!(greeted(&shown, &own, version), Ok(()), "{version:?}");
        let refused = greeted(&shown, &other, version).expect_err("has another key");
        let bad = rustls::Error::InvalidCertificate(CertificateError::BadSignature);
        assert_eq!(refused, bad, "{version:?}");
    }
}

#[test]
fn its_dates_and_its_purpose_count() {
    let at = |year| date_time_ymd(year, 1, 1);
    let expired = made_by_openssl(&["gpu.internal"], |params| params.not_after = at(2025));
    let refusal = refused(expired, "gpu.internal").expect("is refused");
    assert!(refusal.contains("has expired"), "{refusal}");
    let early = made_by_openssl(&["gpu.internal"], |params| params.not_before = at(2027));
    let refusal = refused(early, "gpu.internal").expect("is refused");
    assert!(refusal.contains("is not valid yet"), "{refusal}");
    for (purpose, is_accepted) in [
        (ExtendedKeyUsagePurpose::ServerAuth, true),
        (ExtendedKeyUsagePurpose::Any, true),
        (ExtendedKeyUsagePurpose::ClientAuth, false),
    ] {
        let der = made_by_openssl(&["gpu.internal"], |params| {
            params.extended_key_usages = vec![purpose.clone()];
        });
        let refusal = refused(der, "gpu.internal");
        assert_eq!(refusal.is_none(), is_accepted, "{purpose:?}: {refusal:?}");
    }
}
