package gateway_test

import (
	"bufio"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/holdfast-sessions/holdfast/gateway"
)

// What each kind of affinity decides, and says about it. The files in testdata/affinity have these commands:
//
//	gateway KIND field=value ...   a new gateway; its input has an upstream a line: ID field=value ...
//	reload field=value ...         the same one with other upstreams
//	request [from=ADDRESS] [without=(ID,...)]
//	                               where a request goes, if the upstreams in without take none. Its input is the request's
//	                               first line and header. {ID} is an affinity cookie for an upstream, {ID v1} an undated one.
//	answer by=ID                   what becomes of the answer to that request: what the affinity adds to it
//	drain ID, ready ID             an upstream drains, or no longer
//	stats                          what was learned
func TestDecisions(t *testing.T) {
	datadriven.Walk(t, "testdata/affinity", func(t *testing.T, path string) {
		var d decisions
		datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string { return d.run(t, td) })
	})
}

type decisions struct {
	config  gateway.Config
	g       *gateway.Gateway
	request *http.Request
}

func (d *decisions) run(t *testing.T, td *datadriven.TestData) string {
	t.Helper()
	switch td.Cmd {
	case "gateway":
		d.config = gateway.Config{Affinity: gateway.Affinity(td.CmdArgs[0].Key), Key: testKey}
		for _, arg := range td.CmdArgs[1:] {
			d.set(t, arg)
		}
		d.config.Upstreams = parseUpstreams(t, td.Input)
		d.g = mustNew(t, d.config)
		return ""
	case "reload":
		for _, arg := range td.CmdArgs {
			d.set(t, arg)
		}
		d.config.Upstreams = parseUpstreams(t, td.Input)
		if err := d.g.Rebuild(d.config); err != nil {
			return err.Error()
		}
		return ""
	case "request":
		return d.ask(t, td)
	case "answer":
		return d.answer(t, td)
	case "drain", "ready":
		d.g.SetDraining(td.CmdArgs[0].Key, td.Cmd == "drain")
		return ""
	case "stats":
		return fmt.Sprintf("%+v", d.g.Stats().Learned)
	}
	td.Fatalf(t, "unknown command %q", td.Cmd)
	return ""
}

func (d *decisions) set(t *testing.T, arg datadriven.CmdArg) {
	t.Helper()
	v := arg.Vals[0]
	switch arg.Key {
	case "cookies":
		d.config.SessionCookies = arg.Vals
	case "no-cookie":
		d.config.DisableSessionCookie = true
	case "header":
		d.config.SessionHeader = v
	case "parameter":
		d.config.SessionParameter = v
	case "path":
		d.config.SessionPathParameter = v
	case "separator":
		d.config.RouteSeparator = v
	case "by-address":
		d.config.SessionByAddress = v == "true"
	case "hash-cookie":
		d.config.Hash.Cookie = v
	case "hash-header":
		d.config.Hash.Header = v
	case "hash-parameter":
		d.config.Hash.Parameter = v
	case "upstream-header":
		d.config.UpstreamHeader = v
	case "trusted":
		d.config.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(v)}
	case "entries":
		d.config.LearnedEntries, _ = strconv.Atoi(v)
	default:
		t.Fatalf("unknown field %q", arg.Key)
	}
}

// parseUpstreams reads lines like "a weight=2 route=node1".
func parseUpstreams(t *testing.T, text string) (all []gateway.Upstream) {
	t.Helper()
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		u := gateway.Upstream{ID: fields[0], URL: "http://" + fields[0] + ":1"}
		for _, f := range fields[1:] {
			name, v, _ := strings.Cut(f, "=")
			switch name {
			case "weight":
				u.Weight, _ = strconv.Atoi(v)
			case "route":
				u.Route = v
			default:
				t.Fatalf("unknown field %q", name)
			}
		}
		all = append(all, u)
	}
	return all
}

func (d *decisions) ask(t *testing.T, td *datadriven.TestData) string {
	t.Helper()
	text := td.Input
	if d.config.Affinity == gateway.AffinityCookie || d.config.Affinity == gateway.AffinitySession {
		for _, u := range d.config.Upstreams {
			text = strings.NewReplacer("{"+u.ID+"}", secureName+"="+d.g.AffinityValue(u.ID, time.Now()),
				"{"+u.ID+" v1}", secureName+"="+d.g.UndatedValue(u.ID)).Replace(text)
		}
	}
	first, header, _ := strings.Cut(text, "\n")
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(first + " HTTP/1.1\r\nHost: example.com\r\n" + strings.ReplaceAll(header, "\n", "\r\n") + "\r\n\r\n")))
	if err != nil {
		td.Fatalf(t, "%v", err)
	}
	r.RemoteAddr = "192.0.2.1:1234"
	var without []string
	for _, arg := range td.CmdArgs {
		switch arg.Key {
		case "from":
			r.RemoteAddr = netip.AddrPortFrom(netip.MustParseAddr(arg.Vals[0]), 1234).String()
		case "without":
			without = arg.Vals
		}
	}
	d.request = r
	id, why := d.g.Prefer(r, without...)
	if id == "" {
		id = "any"
	}
	return strings.Join(append(why, "-> "+id), "\n")
}

func (d *decisions) answer(t *testing.T, td *datadriven.TestData) string {
	t.Helper()
	var by string
	td.ScanArgs(t, "by", &by)
	res, err := http.ReadResponse(bufio.NewReader(strings.NewReader("HTTP/1.1 "+strings.ReplaceAll(td.Input, "\n", "\r\n")+"\r\n\r\n")), d.request)
	if err != nil {
		td.Fatalf(t, "%v", err)
	}
	defer res.Body.Close()
	before := len(res.Header["Set-Cookie"])
	d.g.Answered(d.request, by, res)
	var out []string
	for _, c := range res.Header["Set-Cookie"][before:] {
		value, attributes, _ := strings.Cut(strings.TrimPrefix(c, secureName+"="), ";")
		if value != "" {
			value = "{" + d.g.Home(withCookies(value)) + "}"
		}
		out = append(out, "Set-Cookie: "+secureName+"="+value+";"+attributes)
	}
	if cc := res.Header.Get("Cache-Control"); cc != "" {
		out = append(out, "Cache-Control: "+cc)
	}
	return strings.Join(out, "\n")
}

// Time passes in a bubble, for what was learned.
func TestLearnedIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := mustNew(t, gateway.Config{
			Upstreams: weighted(1, 1, 1), Affinity: gateway.AffinitySession, Key: testKey, SessionHeader: "Session", LearnedIdle: time.Hour,
		})
		r := withCookies()
		g.Answered(r, "c", &http.Response{StatusCode: 200, Header: http.Header{"Session": {"s1"}}})
		r.Header.Set("Session", "s1")
		for range 3 {
			time.Sleep(time.Hour)
			if got, _ := g.Prefer(r); got != "c" {
				t.Fatalf("session of upstream c goes to %q", got)
			}
		}
		time.Sleep(time.Hour + 1)
		if _, why := g.Prefer(r); !strings.Contains(strings.Join(why, "\n"), "by a hash of the session ID") {
			t.Errorf("after the idle time: %q, want a hash of the ID", why)
		}
		if s := g.Stats().Learned; s.Entries != 0 || s.Expirations != 1 || s.Hits != 3 || s.Capacity < 100_000 {
			t.Errorf("stats %+v", s)
		}
	})
}
