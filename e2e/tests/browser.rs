//! The page in headless Chromium, as a person sees and uses it.

use {
    anyhow::{Context, Result, ensure},
    healthscope_e2e::{
        api::Api,
        browser::Browser,
        program::{Program, free_address},
        target::Target,
    },
    std::{fs, net::SocketAddr},
    tempfile::TempDir,
};

/// A shop whose cart depends on its database; what the database's check prints is hostile.
struct Shop {
    folder: TempDir,
    target: Target,
    address: SocketAddr,
    _aggregator: Program,
    _agent: Program,
}

impl Shop {
    async fn open() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let target = Target::start().await?;
        let address = free_address()?;
        let port = target.address.port();
        let component = |name: &str, depends_on: &str, probe: &str| {
            format!(
                "---\napiVersion: healthscope.core.oam.dev/v1beta1\nkind: Component\n\
                 metadata: {{name: {name}, labels: {{part-of: shop}}, \
                 annotations: {{healthscope.core.oam.dev/depends-on: \"{depends_on}\"}}}}\nspec: {probe}\n"
            )
        };
        let http =
            format!("{{readinessProbe: {{httpGet: {{port: {port}}}, period: 100ms, failureThreshold: 1}}}}");
        // The file named broken decides; what is printed is an attack.
        let hostile = "{probes: [{name: rows, period: 100ms, failureThreshold: 1, exec: {command: [sh, -c, \
                       \"test ! -e broken || { echo '<img src=x onerror=document.title=1><script>alert(1)</script>'; \
                       printf '\\\\033[31mred'; exit 3; }\"]}}]}";
        let config = [
            component("db", "", hostile),
            component("cart", "db", &http),
            "---\napiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {name: shop}\n\
             spec: {selector: {matchLabels: {part-of: shop}}}\n"
                .to_owned(),
            "---\napiVersion: core.oam.dev/v1beta1\nkind: HealthScope\nmetadata: {name: quiet}\nspec: {}\n"
                .to_owned(),
        ]
        .concat();
        let path = folder.path().join("config.yaml");
        fs::write(&path, config)?;
        let path = path.display().to_string();
        let aggregator = Program::start(
            "healthscope-aggregator",
            &["--config", &path, "--listen", &address.to_string()],
            folder.path(),
        )?;
        let socket = folder.path().join("agent.sock").display().to_string();
        let agent = Program::start(
            "healthscope-agent",
            &[
                "--config",
                &path,
                "--aggregator",
                &format!("ws://{address}"),
                "--socket",
                &socket,
            ],
            folder.path(),
        )?;
        let shop = Self {
            folder,
            target,
            address,
            _aggregator: aggregator,
            _agent: agent,
        };
        shop.api().until_health("shop", "Healthy").await?;
        Ok(shop)
    }

    fn api(&self) -> Api {
        Api::new(self.address)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Breaks the database and what depends on it.
    fn break_db(&self) -> Result<()> {
        self.target.answer(503);
        Ok(fs::write(self.folder.path().join("broken"), "")?)
    }

    fn mend_db(&self) -> Result<()> {
        self.target.answer(200);
        Ok(fs::remove_file(self.folder.path().join("broken"))?)
    }
}

const SHOP: &str = "document.querySelector('[data-key=\"default/shop\"]')";

#[tokio::test]
async fn the_page_follows_a_fault_and_its_end_without_reloading() -> Result<()> {
    let shop = Shop::open().await?;
    let mut browser = Browser::start(1280, 900).await?;
    browser.open(&shop.url("/")).await?;
    browser
        .until(&format!("{SHOP}.innerText.includes('Healthy')"))
        .await?;
    browser
        .until("document.querySelector('#pulse-text').innerText.includes('live')")
        .await?;
    browser.evaluate("window.isTheSamePage = true").await?;

    shop.break_db()?;
    browser
        .until(&format!("{SHOP}.innerText.includes('Unhealthy')"))
        .await?;
    browser
        .until(&format!(
            "{SHOP}.querySelector('.root').innerText.startsWith('db ')"
        ))
        .await?;
    browser
        .until(&format!("{SHOP}.innerText.includes('because of db')"))
        .await?;
    browser.until("document.title.includes('shop')").await?;
    browser
        .until("document.querySelector('#announcer').innerText !== ''")
        .await?;
    let first = browser
        .evaluate("document.querySelector('article.card').dataset.key")
        .await?;
    assert_eq!(first, "default/shop", "the worst scope comes first");

    shop.mend_db()?;
    browser
        .until(&format!("!{SHOP}.innerText.includes('Unhealthy')"))
        .await?;
    assert_eq!(browser.evaluate("window.isTheSamePage").await?, true);
    Ok(())
}

#[tokio::test]
async fn what_a_check_printed_is_shown_as_text_and_never_run() -> Result<()> {
    let shop = Shop::open().await?;
    let mut browser = Browser::start(1280, 900).await?;
    browser.open(&shop.url("/")).await?;
    shop.break_db()?;
    browser
        .until(&format!(
            "{SHOP}.textContent.includes('<script>alert(1)</script>')"
        ))
        .await?;
    assert_eq!(
        browser
            .evaluate("document.querySelectorAll('main img, main script').length")
            .await?,
        0
    );
    assert_ne!(browser.evaluate("document.title").await?, "1");
    assert_eq!(
        browser
            .evaluate(&format!("{SHOP}.textContent.includes('\\u001b')"))
            .await?,
        false
    );
    Ok(())
}

#[tokio::test]
async fn nothing_is_fetched_from_elsewhere_and_nothing_complains() -> Result<()> {
    let shop = Shop::open().await?;
    let mut browser = Browser::start(1280, 900).await?;
    for path in [
        "/",
        "/?problems=1",
        "/ui/components",
        "/ui/agents",
        "/ui/scopes/default/shop",
    ] {
        browser.open(&shop.url(path)).await?;
        browser.until("document.querySelector('h1')").await?;
    }
    let here = shop.url("/");
    let elsewhere: Vec<_> = browser
        .requests()
        .iter()
        .filter(|url| !url.starts_with(&here) && !url.starts_with("data:"))
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    assert!(browser.complaints().is_empty(), "{:?}", browser.complaints());
    Ok(())
}

#[tokio::test]
async fn everything_is_reachable_by_keyboard_and_has_a_name() -> Result<()> {
    let shop = Shop::open().await?;
    let mut browser = Browser::start(1280, 900).await?;
    shop.break_db()?;
    shop.api().until_health("shop", "Unhealthy").await?;
    browser.open(&shop.url("/")).await?;

    browser.press("Tab").await?;
    assert_eq!(
        browser.evaluate("document.activeElement.className").await?,
        "skip",
        "the skip link comes first"
    );
    let mut visited = Vec::new();
    for _ in 0..40 {
        browser.press("Tab").await?;
        let here = "(e => `${e.tagName} ${e.innerText || e.id}`)(document.activeElement)";
        visited.push(
            browser
                .evaluate(here)
                .await?
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        );
    }
    for wanted in ["INPUT q", "A shop", "SUMMARY"] {
        assert!(
            visited.iter().any(|seen| seen.starts_with(wanted)),
            "{wanted} is not among {visited:#?}"
        );
    }

    let tree = browser.accessibility_tree().await?;
    for (role, name) in &tree {
        let must_be_named = [
            "link",
            "button",
            "searchbox",
            "textbox",
            "table",
            "heading",
            "navigation",
        ];
        assert!(
            !must_be_named.contains(&role.as_str()) || !name.is_empty(),
            "a {role} without a name"
        );
    }
    let count = |wanted: &str| tree.iter().filter(|(role, _)| role == wanted).count();
    assert_eq!((count("main"), count("banner")), (1, 1));
    assert_eq!(browser.evaluate("document.documentElement.lang").await?, "en");
    assert_eq!(
        browser.evaluate("document.querySelectorAll('h1').length").await?,
        1
    );
    assert_eq!(
        browser
            .evaluate("document.querySelectorAll('[aria-live]:not([aria-live=polite])').length")
            .await?,
        0
    );
    Ok(())
}

/// WCAG 2.1's contrast of the text of each visible element against what lies behind it; the worst one.
const WORST_CONTRAST: &str = "(() => {
    const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => {
        const f = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
    };
    const behind = e => {
        for (; e; e = e.parentElement) {
            const c = rgb(getComputedStyle(e).backgroundColor);
            if (c.length === 3 || c[3] === 1) return c;
        }
        return matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255];
    };
    let worst = [21, ''];
    for (const e of document.querySelectorAll('body *')) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        const box = e.getBoundingClientRect();
        if (!own || box.width < 2 || box.height < 2 || e.closest('[hidden], .unseen')) continue;
        const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < worst[0]) worst = [ratio, e.outerHTML.slice(0, 200)];
    }
    return worst;
})()";

#[tokio::test]
async fn text_can_be_read_by_day_by_night_and_on_a_phone() -> Result<()> {
    let shop = Shop::open().await?;
    shop.break_db()?;
    shop.api().until_health("shop", "Unhealthy").await?;
    for width in [1280, 320] {
        let mut browser = Browser::start(width, 800).await?;
        for scheme in ["light", "dark"] {
            browser.prefer("prefers-color-scheme", scheme).await?;
            browser.open(&shop.url("/")).await?;
            browser
                .until("document.querySelector('#pulse-text').innerText.includes('live')")
                .await?;
            let worst = browser.evaluate(WORST_CONTRAST).await?;
            let ratio = worst[0].as_f64().context("a ratio")?;
            // WCAG 2.1, 1.4.3 (AA).
            ensure!(
                ratio >= 4.5,
                "{scheme}, {width} px: contrast {ratio:.2} at {}",
                worst[1]
            );
            let overflow = browser
                .evaluate("document.documentElement.scrollWidth - innerWidth")
                .await?;
            ensure!(
                overflow.as_i64() <= Some(0),
                "{scheme}: at {width} px the page is {overflow} px too wide"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn problems_only_is_in_the_address_and_search_narrows() -> Result<()> {
    let shop = Shop::open().await?;
    let mut browser = Browser::start(1280, 900).await?;
    shop.break_db()?;
    shop.api().until_health("shop", "Unhealthy").await?;
    browser.open(&shop.url("/?problems=1")).await?;
    let cards = "[...document.querySelectorAll('article.card')].map(card => card.dataset.key).join()";
    assert_eq!(browser.evaluate(cards).await?, "default/shop");
    browser.open(&shop.url("/?q=quiet")).await?;
    assert_eq!(browser.evaluate(cards).await?, "default/quiet");
    Ok(())
}

#[tokio::test]
async fn a_lost_connection_is_said() -> Result<()> {
    let shop = Shop::open().await?;
    let mut browser = Browser::start(1280, 900).await?;
    browser.open(&shop.url("/")).await?;
    browser
        .until("document.querySelector('#pulse-text').innerText.includes('live')")
        .await?;
    let Shop {
        _aggregator: aggregator,
        ..
    } = shop;
    aggregator.kill().await?;
    browser.until("!document.querySelector('#lost').hidden").await?;
    browser
        .until("document.querySelector('#lost').innerText.includes('Connection lost')")
        .await?;
    Ok(())
}
