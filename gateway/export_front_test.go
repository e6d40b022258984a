package gateway

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"
)

// Origin says where r comes from.
func Origin(c Config, r *http.Request) string {
	o := c.originOf(r)
	return fmt.Sprintf("%s [%s] %s %s", o.client, o.chain, o.proto, o.host)
}

var exampleEntry = entry{
	Request: Request{
		Time: time.Unix(1e9, 0), ID: "0af7651916cd43dd8448eb211c80319c", Client: netip.MustParseAddr("203.0.113.7"), Method: "GET", Host: "shop.example",
		Path: "/shop/items", Proto: "HTTP/1.1", Status: 200, BytesOut: 1024, Upstream: "app-1", Attempts: 1, UpstreamDuration: time.Millisecond, Duration: 2 * time.Millisecond,
	},
	referrer: "https://shop.example/", userAgent: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
}

// AccessLogLine returns the line for a request with these.
func AccessLogLine(f AccessLogFormat, path, agent, referrer string) string {
	e := exampleEntry
	e.Path, e.userAgent = path, agent
	e.referrer = referrerOf(&http.Request{Header: http.Header{"Referer": {referrer}}})
	if f == AccessLogCombined {
		return string(e.appendCombined(nil))
	}
	return string(e.appendJSON(nil))
}

// AccessLogAdder returns what adds a typical line, and writes the batches.
func AccessLogAdder(f AccessLogFormat, w io.Writer) func() {
	l := newAccessLog(Config{AccessLog: w, AccessLogFormat: f})
	return func() {
		e := exampleEntry
		l.add(&e)
		if len(l.full) > 0 {
			<-l.full
			l.flush()
		}
	}
}
