# SPDX-License-Identifier: Apache-2.0
"""One registry over HTTP.

The modules in reading order:

    url            whom a URL means
    errors         a registry's answer as an error; who is asked next
    proxy          HTTP_PROXY and NO_PROXY
    tls            contexts, and the certificates of certs.d
    request        the body of a request
    response       an answer whose body is still on the wire
    connection     one HTTP/1.1 connection; where bytes come in
    transport      many of them; redirects, repeats
    auth           challenges and tokens
    endpoints      which hosts to ask, mirrors first
    v2             the v2 protocol
    v1             the v1 protocol
    client         connections that repositories share; the loop over endpoints
    credentials    config.json and credential helpers, read
    login          the same, written
"""
