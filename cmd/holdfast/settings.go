package main

import (
	"encoding"
	"errors"
	"fmt"
	"os"
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
	Listen    []string           `yaml:"listen" help:"addresses for clients"`
	Upstreams []upstreamSettings `yaml:"upstreams" to:"Upstreams" help:"the application servers"`
	Balance   string             `yaml:"balance" to:"Balance" help:"round-robin, least-requests or random-two-choices"`
	Affinity  affinitySettings   `yaml:"affinity"`
	Session   sessionSettings    `yaml:"session"`
	TLS       tlsSettings        `yaml:"tls"`
	Timeouts  timeoutSettings    `yaml:"timeouts"`
	Limits    limitSettings      `yaml:"limits"`

	Zone        string   `yaml:"zone" to:"Zone" help:"where this gateway stands: servers of this zone are preferred"`
	ZoneMinimum float64  `yaml:"zone_minimum" to:"ZoneMinimum" help:"share of the own zone that must be up, 0 to 1"`
	LoadFactor  float64  `yaml:"load_factor" to:"LoadFactor" help:"bound on how uneven load may be: 1.25, or 0 for none"`
	SlowStart   duration `yaml:"slow_start" to:"SlowStart" help:"time in which a server that comes back gets its full share"`
}

type upstreamSettings struct {
	ID          string `yaml:"id" to:"ID" help:"what affinity cookies name; keep it when the address changes"`
	URL         string `yaml:"url" to:"URL" help:"http://host:port"`
	Weight      int    `yaml:"weight" to:"Weight"`
	Zone        string `yaml:"zone" to:"Zone"`
	MaxRequests int    `yaml:"max_requests" to:"MaxRequests" help:"requests at once; 0: no limit"`
}

type affinitySettings struct {
	Kind           string `yaml:"kind" to:"Affinity" help:"none or cookie"`
	KeyFile        string `yaml:"key_file" help:"file with 32 random bytes, the same on every gateway"`
	Cookie         string `yaml:"cookie" to:"Cookie.Name" help:"name of the affinity cookie, without __Host-"`
	PlainLocalhost bool   `yaml:"allow_plain_localhost" to:"Cookie.AllowPlainLocalhost" help:"for development"`
}

type sessionSettings struct {
	Cookies       []string `yaml:"cookies" to:"SessionCookies" help:"names of the application's session cookie; empty: Holdfast's"`
	DisableCookie bool     `yaml:"disable_cookie" to:"DisableSessionCookie"`
	Header        string   `yaml:"header" to:"SessionHeader" help:"where clients without cookies have their token"`
	Parameter     string   `yaml:"parameter" to:"SessionParameter"`
}

type tlsSettings struct {
	Cert string `yaml:"cert" help:"certificate chain, PEM"`
	Key  string `yaml:"key" help:"its private key, PEM"`
}

type timeoutSettings struct {
	Dial           duration `yaml:"dial" to:"DialTimeout" help:"to connect to a server, TLS included"`
	ResponseHeader duration `yaml:"response_header" to:"ResponseHeaderTimeout" help:"for a server to begin its answer"`
	ReadHeader     duration `yaml:"read_header" to:"ReadHeaderTimeout" help:"for a client to send the header of a request"`
	Idle           duration `yaml:"idle" to:"IdleTimeout" help:"for a client's connection without a request"`
	Drain          duration `yaml:"drain" to:"DrainTimeout" help:"for requests to finish at the end"`
}

type limitSettings struct {
	HeaderBytes int `yaml:"header_bytes" to:"MaxHeaderBytes" help:"header of a request"`
}

type adminSettings struct {
	Listen    string `yaml:"listen" help:"loopback address of the admin API, /metrics, /healthz and /readyz; empty: none"`
	TokenFile string `yaml:"token_file" help:"file with the token that changes need; empty: none"`
}

type logSettings struct {
	Format string `yaml:"format" help:"text or json"`
}

// defaults are the settings of an empty file: those of the zero gateway.Config, and what only the program has.
func defaults() settings {
	s := settings{
		Gateway: gatewaySettings{Listen: []string{"127.0.0.1:8080"}},
		Log:     logSettings{Format: "text"},
	}
	each(reflect.ValueOf(&s).Elem(), "", func(path, to string, v reflect.Value) {
		convert(v, fieldAt(reflect.ValueOf(new(gateway.Config{}.WithDefaults())).Elem(), to))
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
	case isSettings(from.Type()):
		var errs []error
		each(from, "", func(_, name string, v reflect.Value) { errs = append(errs, convert(fieldAt(to, name), v)) })
		return errors.Join(errs...)
	case from.CanConvert(to.Type()) && from.Kind() == to.Kind():
		to.Set(from.Convert(to.Type()))
		return nil
	}
	if u, ok := to.Addr().Interface().(encoding.TextUnmarshaler); ok && from.Kind() == reflect.String {
		return u.UnmarshalText([]byte(from.String()))
	}
	if m, ok := from.Interface().(encoding.TextMarshaler); ok && to.Kind() == reflect.String {
		b, err := m.MarshalText()
		to.SetString(string(b))
		return err
	}
	panic(fmt.Sprintf("settings: %s cannot become %s", from.Type(), to.Type()))
}

// config returns the gateway's configuration, with errors that name the line.
func (s *settings) config(layers *configfile.Layers) (gateway.Config, error) {
	var c gateway.Config
	var errs []error
	paths := make(map[string]string) // of settings, by field
	each(reflect.ValueOf(s).Elem(), "", func(path, to string, v reflect.Value) {
		paths[to] = path
		if err := convert(fieldAt(reflect.ValueOf(&c).Elem(), to), v); err != nil {
			errs = append(errs, layers.At(path, err))
		}
	})
	return c, errors.Join(errs...)
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

func (d duration) MarshalText() ([]byte, error) {
	s := time.Duration(d).String()
	// 1m0s is 1m.
	return []byte(regexp.MustCompile(`([mh])0[sm](0s)?$`).ReplaceAllString(s, "$1")), nil
}
