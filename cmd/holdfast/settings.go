package main

import (
	"encoding"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/internal/configfile"
)

// settings is the configuration file. A setting whose tag "to" names a field of gateway.Config sets that field; the tag
// "help" is what "holdfast config init" writes beside it.
type settings struct {
	Gateway gatewaySettings `yaml:"gateway"`
	Admin   adminSettings   `yaml:"admin"`
	Log     logSettings     `yaml:"log"`
}

type gatewaySettings struct {
	Listen       []string              `yaml:"listen" help:"addresses for clients"`
	Upstreams    []upstreamSettings    `yaml:"upstreams" to:"Upstreams" help:"the application servers"`
	Affinity     affinitySettings      `yaml:"affinity"`
	Session      sessionSettings       `yaml:"session"`
	Balance      balanceSettings       `yaml:"balance"`
	Health       healthSettings        `yaml:"health"`
	Ejection     ejectionSettings      `yaml:"ejection"`
	Queue        queueSettings         `yaml:"queue"`
	Resolve      resolveSettings       `yaml:"resolve"`
	Certificates []certificateSettings `yaml:"certificates" to:"Certificates" help:"for https to clients: a list of cert and key, files in PEM form that are read again when they change"`
	UpstreamTLS  upstreamTLSSettings   `yaml:"upstream_tls"`
	Proxies      proxySettings         `yaml:"trusted_proxies"`
	Timeouts     timeoutSettings       `yaml:"timeouts"`
	Limits       limitSettings         `yaml:"limits"`
	AccessLog    accessLogSettings     `yaml:"access_log"`
}

type upstreamSettings struct {
	ID          string `yaml:"id" to:"ID" help:"what affinity cookies name: keep it when the address changes"`
	URL         string `yaml:"url" to:"URL" help:"http://host:port, https://host:port or unix:/path/to/socket"`
	HTTP2       bool   `yaml:"http2" to:"HTTP2" help:"an https server may choose HTTP/2"`
	Weight      int    `yaml:"weight" to:"Weight" help:"its share, beside those of the others; 0 is 1"`
	Route       string `yaml:"route" to:"Route" help:"for affinity route, such as a jvmRoute; empty: the id"`
	Zone        string `yaml:"zone" to:"Zone" help:"where it stands, such as a data centre; see balance.zone"`
	MaxRequests int    `yaml:"max_requests" to:"MaxRequests" help:"at once; 0: no limit"`
	Resolve     bool   `yaml:"resolve" to:"Resolve" help:"every address of the name is a server of its own"`
}

type affinitySettings struct {
	Kind           string   `yaml:"kind" to:"Affinity" help:"none, cookie, session, route, hash, ip or header"`
	KeyFile        string   `yaml:"key_file" help:"file with 32 random bytes, the same on every gateway (openssl rand -hex 32)"`
	Cookie         string   `yaml:"cookie" to:"Cookie.Name" help:"name of the affinity cookie, without __Host-"`
	MaxAge         duration `yaml:"max_age" to:"Cookie.MaxAge" help:"after which a client is assigned anew; 0s: never"`
	PlainLocalhost bool     `yaml:"allow_plain_localhost" to:"Cookie.AllowPlainLocalhost" help:"cookies without Secure on plain http to localhost, for development"`
	HashCookie     string   `yaml:"hash_cookie" to:"Hash.Cookie" help:"for hash: the cookie, header or parameter to hash, one of the three"`
	HashHeader     string   `yaml:"hash_header" to:"Hash.Header" help:"such as X-Tenant"`
	HashParameter  string   `yaml:"hash_parameter" to:"Hash.Parameter" help:"in the query"`
	Header         string   `yaml:"upstream_header" to:"UpstreamHeader" help:"for header: where a trusted proxy names the server"`
	RouteSeparator string   `yaml:"route_separator" to:"RouteSeparator" help:"for route: between session ID and route"`
	ByAddress      bool     `yaml:"by_address" to:"SessionByAddress" help:"for session: clients that are not known go by their address"`
	Learned        int      `yaml:"learned_entries" to:"LearnedEntries" help:"for session: how many clients without cookies are remembered"`
	LearnedIdle    duration `yaml:"learned_idle" to:"LearnedIdle" help:"and for how long, when they do not come"`
}

type sessionSettings struct {
	Cookies       []string `yaml:"cookies" to:"SessionCookies" help:"names of the application's session cookie; empty: Holdfast's"`
	DisableCookie bool     `yaml:"disable_cookie" to:"DisableSessionCookie" help:"it has none"`
	Header        string   `yaml:"header" to:"SessionHeader" help:"where clients without cookies have their token"`
	Parameter     string   `yaml:"parameter" to:"SessionParameter" help:"in the query"`
	PathParameter string   `yaml:"path_parameter" to:"SessionPathParameter" help:"in the path, such as jsessionid"`
	SignatureFile string   `yaml:"signature_key_file" help:"file with 32 random bytes that sign X-Session-Id; empty: not signed"`
}

type balanceSettings struct {
	Policy      string   `yaml:"policy" to:"Balance" help:"round-robin, least-requests or two-choices, for clients without a server"`
	Zone        string   `yaml:"zone" to:"Zone" help:"where this gateway stands: servers of this zone come first"`
	ZoneMinimum float64  `yaml:"zone_minimum" to:"ZoneMinimum" help:"while this share of them is up, 0 to 1"`
	LoadFactor  float64  `yaml:"load_factor" to:"LoadFactor" help:"how uneven load may be, such as 1.25; 0: no bound"`
	SlowStart   duration `yaml:"slow_start" to:"SlowStart" help:"in which a server that comes back gets its full share"`
}

type healthSettings struct {
	Path           string   `yaml:"path" to:"HealthCheck.Path" help:"what to GET, such as /healthz; empty: no checks"`
	Status         int      `yaml:"status" to:"HealthCheck.Status" help:"the answer expected; 0: any 2xx"`
	Host           string   `yaml:"host" to:"HealthCheck.Host" help:"the Host of the checks; empty: that of the url"`
	TCP            bool     `yaml:"tcp" to:"HealthCheck.TCP" help:"connect only"`
	Interval       duration `yaml:"interval" to:"HealthCheck.Interval" help:"between checks of a server"`
	Timeout        duration `yaml:"timeout" to:"HealthCheck.Timeout" help:"for the answer"`
	Rise           int      `yaml:"rise" to:"HealthCheck.Rise" help:"good checks in a row that bring a server back"`
	Fall           int      `yaml:"fall" to:"HealthCheck.Fall" help:"bad ones that take it out"`
	PanicThreshold float64  `yaml:"panic_threshold" to:"PanicThreshold" help:"with less than this share up, 0 to 1, all get requests"`
}

type ejectionSettings struct {
	Disable  bool     `yaml:"disable" to:"Ejection.Disable" help:"keep servers that accept connections and do not answer"`
	Failures int      `yaml:"failures" to:"Ejection.Failures" help:"in a row that take a server out"`
	Statuses []int    `yaml:"statuses" to:"Ejection.Statuses" help:"answers that are failures, such as [502, 503, 504]"`
	Time     duration `yaml:"time" to:"Ejection.Time" help:"out at first; twice as long each time"`
	MaxTime  duration `yaml:"max_time" to:"Ejection.MaxTime" help:"but no longer than that"`
	MaxShare float64  `yaml:"max_share" to:"Ejection.MaxShare" help:"of all servers that may be out, 0 to 1"`
}

type queueSettings struct {
	Max     int      `yaml:"max" to:"MaxQueued" help:"requests that wait for a server with max_requests; -1: none"`
	Timeout duration `yaml:"timeout" to:"QueueTimeout" help:"after which they are answered 503"`
}

type resolveSettings struct {
	Every duration `yaml:"every" to:"ResolveEvery" help:"how often names with resolve are looked up"`
}

type certificateSettings struct {
	Cert string `yaml:"cert" to:"CertFile" help:"a certificate and its chain"`
	Key  string `yaml:"key" to:"KeyFile" help:"its private key, which not everybody may read"`
}

type upstreamTLSSettings struct {
	CAFile string `yaml:"ca_file" help:"certificates, PEM, by which https servers are known; empty: the system's"`
}

type accessLogSettings struct {
	Path   string `yaml:"path" help:"file for a line about each request, or - for standard output; empty: none"`
	Format string `yaml:"format" to:"AccessLogFormat" help:"json or combined"`
}

type proxySettings struct {
	Addresses     []string `yaml:"addresses" to:"TrustedProxies" help:"addresses or networks of proxies in front, such as 10.0.0.0/8"`
	UseForwarded  bool     `yaml:"use_forwarded" to:"UseForwarded" help:"they send Forwarded, not X-Forwarded-*"`
	ProxyProtocol bool     `yaml:"proxy_protocol" to:"ProxyProtocol" help:"they speak the PROXY protocol"`
}

type timeoutSettings struct {
	Dial           duration `yaml:"dial" to:"DialTimeout" help:"to connect to a server, TLS included"`
	ResponseHeader duration `yaml:"response_header" to:"ResponseHeaderTimeout" help:"for a server to begin its answer"`
	BodyIdle       duration `yaml:"body_idle" to:"BodyIdleTimeout" help:"for a server to send or take more of a body"`
	ReadHeader     duration `yaml:"read_header" to:"ReadHeaderTimeout" help:"for a client to send the header of a request"`
	Body           duration `yaml:"body" to:"BodyTimeout" help:"for a client to send more of a body; -1s: no limit"`
	Write          duration `yaml:"write" to:"WriteTimeout" help:"for a client to take more of an answer"`
	Idle           duration `yaml:"idle" to:"IdleTimeout" help:"for a client's connection without a request"`
	Drain          duration `yaml:"drain" to:"DrainTimeout" help:"for requests to finish at the end"`
}

type limitSettings struct {
	HeaderBytes          int   `yaml:"header_bytes" to:"MaxHeaderBytes" help:"header of a request"`
	Headers              int   `yaml:"headers" to:"MaxHeaders" help:"its lines"`
	BodyBytes            int64 `yaml:"body_bytes" to:"MaxBodyBytes" help:"body of a request; 0: no limit"`
	BodyRate             int   `yaml:"body_rate" to:"MinBodyRate" help:"bytes a second that a client must send of it, see timeouts.body"`
	Connections          int   `yaml:"connections" to:"MaxConnections" help:"of all clients; 0: no limit"`
	ConnectionsPerClient int   `yaml:"connections_per_client" to:"MaxConnectionsPerClient" help:"of one address; 0: no limit"`
}

type adminSettings struct {
	Listen    string   `yaml:"listen" help:"address of the admin API, /metrics, /healthz and /readyz; empty: none"`
	TokenFile string   `yaml:"token_file" help:"file with the token that the admin API asks for; empty: none, and loopback only"`
	Hosts     []string `yaml:"hosts" help:"host names besides localhost under which it may be reached"`
}

type logSettings struct {
	Format string `yaml:"format" help:"text or json, on standard error"`
}

// defaults are the settings of an empty file: those of the zero gateway.Config, and what only the program has.
func defaults() settings {
	s := settings{
		Gateway: gatewaySettings{Listen: []string{"127.0.0.1:8080"}},
		Log:     logSettings{Format: "text"},
	}
	config := reflect.ValueOf(gateway.Config{}.WithDefaults())
	each(reflect.ValueOf(&s).Elem(), "", func(_, to string, v reflect.Value) {
		_ = convert(v, fieldAt(config, to)) // of what texts there are, all are empty
	})
	return s
}

// each calls f for every setting in v, and for every list of groups, that has a field in gateway.Config.
func each(v reflect.Value, path string, f func(path, to string, v reflect.Value)) {
	for i := range v.NumField() {
		field, tag := v.Field(i), v.Type().Field(i).Tag
		at := strings.TrimPrefix(path+"."+tag.Get("yaml"), ".")
		if to := tag.Get("to"); to != "" {
			f(at, to, field)
		} else if field.Kind() == reflect.Struct {
			each(field, at, f)
		}
	}
}

// fieldAt returns the field that "Cookie.Name" names.
func fieldAt(v reflect.Value, name string) reflect.Value {
	for part := range strings.SplitSeq(name, ".") {
		v = v.FieldByName(part)
	}
	return v
}

// convert sets to by from: values of the same kind, texts, and lists of either or of groups.
func convert(to, from reflect.Value) error {
	switch {
	case from.Kind() == reflect.Slice && to.Kind() == reflect.Slice:
		if from.Len() == 0 {
			to.SetZero()
			return nil
		}
		to.Set(reflect.MakeSlice(to.Type(), from.Len(), from.Len()))
		for i := range from.Len() {
			if err := convert(to.Index(i), from.Index(i)); err != nil {
				return err
			}
		}
		return nil
	case from.Kind() == reflect.Struct && !isText(from):
		var errs []error
		each(from, "", func(_, name string, v reflect.Value) { errs = append(errs, convert(fieldAt(to, name), v)) })
		return errors.Join(errs...)
	case from.CanConvert(to.Type()) && from.Kind() == to.Kind():
		to.Set(from.Convert(to.Type()))
		return nil
	}
	if p, ok := to.Addr().Interface().(*netip.Prefix); ok {
		var err error
		*p, err = parseNetwork(from.String())
		return err
	}
	if m, ok := from.Interface().(encoding.TextMarshaler); ok && to.Kind() == reflect.String {
		b, err := m.MarshalText()
		to.SetString(string(b))
		return err
	}
	panic(fmt.Sprintf("settings: %s cannot become %s", from.Type(), to.Type()))
}

func isText(v reflect.Value) bool {
	_, ok := v.Interface().(encoding.TextMarshaler)
	return ok
}

// config returns the gateway's configuration, with errors that name the line.
func (s *settings) config(layers *configfile.Layers) (gateway.Config, error) {
	var c gateway.Config
	var errs []error
	each(reflect.ValueOf(s).Elem(), "", func(path, to string, v reflect.Value) {
		if err := convert(fieldAt(reflect.ValueOf(&c).Elem(), to), v); err != nil {
			errs = append(errs, layers.At(path, err))
		}
	})
	return c, errors.Join(errs...)
}

// locate says for each *gateway.ConfigError in err which setting it is about.
func (s *settings) locate(layers *configfile.Layers, err error) error {
	if err == nil {
		return nil
	}
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, err := range all.Unwrap() {
			errs = append(errs, s.locate(layers, err))
		}
		return errors.Join(errs...)
	}
	var wrong *gateway.ConfigError
	if !errors.As(err, &wrong) {
		return err
	}
	path := "gateway"
	list, field, inList := strings.Cut(wrong.Field, "].")
	name, index, _ := strings.Cut(list, "[")
	each(reflect.ValueOf(s).Elem(), "", func(at, to string, v reflect.Value) {
		switch {
		case to != name:
		case !inList:
			path = at
		default:
			path = at + "[" + index + "]"
			each(reflect.New(v.Type().Elem()).Elem(), path, func(at, to string, _ reflect.Value) {
				if to == field {
					path = at
				}
			})
		}
	})
	return layers.At(path, wrong.Err)
}

// parseNetwork reads a network, or an address, which is a network of one.
func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q: want an address such as 192.0.2.1 or a network such as 10.0.0.0/8", s)
	}
	return p, nil
}

// duration is a time.Duration that is written as 1m30s.
type duration time.Duration

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return errors.New("want a time such as 30s or 1m30s")
	}
	*d = duration(v)
	return nil
}

// zeros are the parts of 1m0s and 1h0m0s that say nothing.
var zeros = regexp.MustCompile(`([mh])0[sm](0s)?$`)

func (d duration) MarshalText() ([]byte, error) {
	return []byte(zeros.ReplaceAllString(time.Duration(d).String(), "$1")), nil
}
