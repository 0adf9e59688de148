"""What secrets look like in texts: one list for captured prompts, contexts, components and error messages.

Texts may be hostile. A pattern begins only where a word of its own characters begins, and inside it no character fits
two parts, so each takes linear time.
"""

from __future__ import annotations

__all__ = ["API_KEY", "ASSIGNED", "BEARER", "JWT", "MAYBE_ASSIGNED", "PRIVATE_KEY", "SECRETS", "URL_PASSWORD"]

PRIVATE_KEY = (
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"
    r"(?:(?!-----)[\s\S]){0,20000}+(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"
)
"""Without an end, everything behind the beginning is taken for the key."""

JWT = r"(?<![\w.-])eyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]{4,}"

BEARER = r"(?i)(?<!\w)bearer\s{1,4}[\w.~+/=-]{8,}"

API_KEY = (
    r"(?<![\w-])(?:"
    r"(?:(?:sk|pk|rk|gsk|hf|gh[pousr]|glpat|xox[abprs]|npm|shpat|github_pat)[-_]|AIza)[\w-]{16,}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|A[KS]IA[0-9A-Z]{16}"
    r")(?![\w-])"
)
"""Of OpenAI, Anthropic, Stripe, Groq, Hugging Face, GitHub, GitLab, Slack, npm, Shopify, Google, SendGrid and AWS."""

URL_PASSWORD = r"(?i)(?<=://)[^\s/:@]{0,200}:[^\s/@]{1,2000}(?=@)"

ASSIGNED = (
    r"(?i)(?P<keep>(?<![a-z0-9])(?:api[_-]?key|access[_-]?(?:token|key)|password|passwd|pwd|secret|token)\b"
    r"\\{0,3}[\"']?\s{0,4}[:=]\s{0,4}\\{0,3}[\"']?)[^\s\"',;}{\\]{6,}"
)
"""`password: ...`; the group `keep` is what is no secret, so that JSON is JSON without it."""

MAYBE_ASSIGNED = (
    r"(?i)(?<![a-z0-9])(?:password|passwd|pwd|secret|api[_-]?key|access[_-]?(?:token|key))\b\\{0,3}[\"']?\s{0,4}"
    r"(?:is\s{1,4}|[:=]\s{0,4})[^\s,;]+"
)
"""The same for texts in which a sentence too few does no harm: also `the password is x`, and all of it."""

SECRETS = (PRIVATE_KEY, JWT, BEARER, API_KEY, URL_PASSWORD, ASSIGNED)
"""In the order in which they are taken out: keys first, as others could take parts of them."""
