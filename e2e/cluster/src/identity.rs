//! Who is who in a cluster: its authority, certificates, the administrator's token, and the keys of ServiceAccounts.

use {
    anyhow::{Context, anyhow, bail},
    base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD},
    rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        KeyUsagePurpose,
    },
    ring::{
        rand::{SecureRandom, SystemRandom},
        signature,
    },
    rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject},
    serde_json::{Value, json},
    std::{
        fs,
        net::IpAddr,
        os::unix::fs::PermissionsExt,
        path::{Path, PathBuf},
        process::Command,
    },
};

/// The issuer of ServiceAccount tokens, and their audience when none is asked for: kubeadm's default.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The files of a certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// The authority that signs everything in one cluster.
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
    /// Its certificate's file.
    pub(crate) file: PathBuf,
}

impl Authority {
    /// Makes an authority that writes its files into the folder.
    pub(crate) fn create(folder: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "healthscope-e2e");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params
            .self_signed(&key)
            .context("cannot make the authority's certificate")?;
        let file = folder.join("ca.crt");
        write(&file, &certificate.pem())?;
        write(&folder.join("ca.key"), &key.serialize_pem())?;
        Ok(Self {
            folder,
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            file,
        })
    }

    /// A certificate for a server at these names and addresses.
    pub(crate) fn server(
        &self,
        file: &str,
        names: &[&str],
        addresses: &[IpAddr],
    ) -> anyhow::Result<Certificate> {
        let names: Vec<String> = names
            .iter()
            .map(ToString::to_string)
            .chain(addresses.iter().map(ToString::to_string))
            .collect();
        let mut params = CertificateParams::new(names).context("a name that cannot be in a certificate")?;
        params.distinguished_name.push(DnType::CommonName, file);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(file, &params)
    }

    /// A certificate that Kubernetes takes for this user, in this group.
    pub(crate) fn client(&self, file: &str, user: &str, group: Option<&str>) -> anyhow::Result<Certificate> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(file, &params)
    }

    fn sign(&self, file: &str, params: &CertificateParams) -> anyhow::Result<Certificate> {
        let signed = || -> Result<_, rcgen::Error> {
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &self.issuer)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let (certificate_pem, key_pem) =
            signed().with_context(|| format!("cannot sign a certificate for {file}"))?;
        let certificate = self.folder.join(format!("{file}.crt"));
        let key = self.folder.join(format!("{file}.key"));
        write(&certificate, &certificate_pem)?;
        write(&key, &key_pem)?;
        Ok(Certificate { certificate, key })
    }
}

/// Writes a file that only its owner may read.
pub(crate) fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    fs::write(path, content)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A token that nobody can guess.
pub(crate) fn random_token() -> anyhow::Result<String> {
    let mut bytes = [0; 24];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_unspecified| anyhow!("the system gives no randomness"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The kind of key that ServiceAccount tokens are signed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// Signs with RS256, as nearly all clusters do.
    #[default]
    Rsa2048,
    /// Signs with ES256.
    EcP256,
}

impl KeyKind {
    fn algorithm(self) -> &'static str {
        match self {
            Self::Rsa2048 => "RS256",
            Self::EcP256 => "ES256",
        }
    }
}

/// The keys that a cluster signs its ServiceAccounts' tokens with, so that tests can forge and backdate some.
#[derive(Clone, Debug)]
pub struct ServiceAccountKeys {
    /// The private key's file: PKCS #8 in PEM.
    pub private: PathBuf,
    /// The public key's file, in PEM.
    pub public: PathBuf,
    /// What signs with it.
    pub kind: KeyKind,
    /// The cluster's issuer, and the audience of its own tokens.
    pub issuer: String,
    /// What the cluster's published keys, and the head of each token, call this key.
    pub key_id: String,
}

impl ServiceAccountKeys {
    /// Makes a pair of keys in a folder, under a name. Anyone may: these forge, unless they are the cluster's own.
    pub fn create(folder: &Path, name: &str, kind: KeyKind) -> anyhow::Result<Self> {
        let private = folder.join(format!("{name}.key"));
        let public = folder.join(format!("{name}.pub"));
        let kind_arguments: &[&str] = match kind {
            KeyKind::Rsa2048 => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            KeyKind::EcP256 => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        };
        openssl(
            Command::new("openssl")
                .arg("genpkey")
                .args(kind_arguments)
                .arg("-out")
                .arg(&private),
        )?;
        openssl(
            Command::new("openssl")
                .args(["pkey", "-pubout", "-in"])
                .arg(&private)
                .arg("-out")
                .arg(&public),
        )?;
        let public_der = SubjectPublicKeyInfoDer::from_pem_file(&public)
            .with_context(|| format!("cannot read {}", public.display()))?;
        // As Kubernetes names its keys (pkg/serviceaccount/jwt.go, keyIDFromPublicKey).
        let digest = ring::digest::digest(&ring::digest::SHA256, &public_der);
        Ok(Self {
            private,
            public,
            kind,
            issuer: ISSUER.to_owned(),
            key_id: URL_SAFE_NO_PAD.encode(digest),
        })
    }

    /// Signs a token with these claims, whatever they say.
    pub fn sign(&self, claims: &Value) -> anyhow::Result<String> {
        let head = json!({"alg": self.kind.algorithm(), "kid": self.key_id});
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&head), encode(claims));
        let signature = self.signature(signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn signature(&self, signed: &[u8]) -> anyhow::Result<Vec<u8>> {
        let key = PrivatePkcs8KeyDer::from_pem_file(&self.private)
            .with_context(|| format!("cannot read {}", self.private.display()))?;
        let key = key.secret_pkcs8_der();
        let random = SystemRandom::new();
        let rejected = |error| anyhow!("the key in {} is not accepted: {error}", self.private.display());
        let failed = |_unspecified| anyhow!("cannot sign");
        match self.kind {
            KeyKind::Rsa2048 => {
                let pair = signature::RsaKeyPair::from_pkcs8(key).map_err(rejected)?;
                let mut made = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, signed, &mut made)
                    .map_err(failed)?;
                Ok(made)
            }
            KeyKind::EcP256 => {
                let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
                let pair = signature::EcdsaKeyPair::from_pkcs8(algorithm, key, &random).map_err(rejected)?;
                Ok(pair.sign(&random, signed).map_err(failed)?.as_ref().to_vec())
            }
        }
    }
}

fn openssl(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .context("cannot run openssl; it is in the package of that name")?;
    if !output.status.success() {
        bail!("openssl failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_keys_are_for_their_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path().join("pki")).unwrap();
        let made = authority.client("someone", "someone", Some("group")).unwrap();
        let mode = fs::metadata(made.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
