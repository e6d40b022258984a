package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/holdfast-sessions/holdfast/gateway"
	"github.com/holdfast-sessions/holdfast/internal/configfile"
)

// configCmd is the commands that work with a configuration file.
type configCmd struct {
	Check configCheckCmd `cmd:"" help:"Say everything that is wrong with a configuration file."`
	Show  configShowCmd  `cmd:"" help:"Print the settings that hold, and where each comes from."`
	Init  configInitCmd  `cmd:"" help:"Print a configuration file to begin with."`
}

type configCheckCmd struct {
	File string `arg:"" type:"existingfile" help:"The configuration file."`
}

func (configCheckCmd) Help() string {
	return `Reads the file as "holdfast gateway --config FILE" does, with the keys and certificates that it names, and connects to
nothing. Exit status 0: it can be used.`
}

func (c configCheckCmd) Run() error {
	s, layers, err := readSettings(c.File)
	if err == nil {
		_, err = new(loader).parts(&s, layers)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%s: ok\n", c.File)
	return err
}

type configShowCmd struct {
	File string `arg:"" optional:"" type:"existingfile" help:"The configuration file; without one, the defaults."`
	gatewayFlags
}

func (configShowCmd) Help() string {
	return `Takes the flags of "holdfast gateway", and prints a configuration file that is the same as the file, the environment and
the flags together. Beside each setting is where its value comes from. A flag goes before the environment, that before the
file, and that before the default.`
}

func (c configShowCmd) Run(k *kong.Context) error {
	s, layers, err := readSettings(c.File)
	if err != nil {
		return err
	}
	if err := c.lay(&s, layers, k); err != nil {
		return err
	}
	return layers.Print(os.Stdout, &s)
}

type configInitCmd struct{}

func (configInitCmd) Help() string {
	return `Prints every setting with its default, and what it is for.

  holdfast config init > holdfast.yaml
  holdfast config check holdfast.yaml`
}

func (configInitCmd) Run() error { return writeInitial(os.Stdout) }

// writeInitial writes the file of "config init".
func writeInitial(w io.Writer) error {
	s := defaults()
	s.Gateway.Upstreams = []upstreamSettings{
		{ID: "a", URL: "http://127.0.0.1:3001", Weight: 1},
		{ID: "b", URL: "http://127.0.0.1:3002", Weight: 1},
	}
	s.Admin.Listen = defaultAdmin
	return configfile.Describe(w, &s)
}

// readSettings reads a file, or the defaults if path is "".
func readSettings(path string) (settings, *configfile.Layers, error) {
	if path == "" {
		return parseSettings("", nil)
	}
	content, err := readConfig(path)
	if err != nil {
		return settings{}, nil, err
	}
	return parseSettings(path, content)
}

func readConfig(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	return b, nil
}

// parseSettings lays the content of the file path over the defaults.
func parseSettings(path string, content []byte) (settings, *configfile.Layers, error) {
	s := defaults()
	layers, err := configfile.Read(path, content, &s)
	return s, layers, err
}

// gatewayFlags are the settings that have a flag, and so an environment variable. The tag "setting" names the setting.
type gatewayFlags struct {
	Listen   []string `setting:"gateway.listen" placeholder:"ADDR" help:"Address for clients (127.0.0.1:8080). Port 0 takes a free one."`
	Upstream []string `setting:"gateway.upstreams" placeholder:"[ID=]URL" help:"Application server, as http://host:port or ID=http://host:port. Once for each, or with commas between them."`
	Affinity string   `setting:"gateway.affinity.kind" placeholder:"KIND" help:"Which server a client goes to: none, cookie, session, route, hash, ip or header (none). docs/gateway.md explains them."`

	KeyFile          string `setting:"gateway.affinity.key_file" type:"path" placeholder:"PATH" help:"File with the key of affinity cookies, 32 random bytes (openssl rand -hex 32), the same on every gateway and readable by its owner only. Or put the key into HOLDFAST_KEY."`
	AffinityCookie   string `setting:"gateway.affinity.cookie" placeholder:"NAME" help:"Name of the affinity cookie, without __Host- (holdfast-upstream)."`
	PlainLocalhost   bool   `setting:"gateway.affinity.allow_plain_localhost" name:"allow-plain-localhost" help:"On plain http to localhost, where not every browser sends Secure cookies, make them without it. For development."`
	SessionCookie    string `setting:"gateway.session.cookies" placeholder:"NAME" help:"Name of the application's session cookie, for X-Session-Id (__Host-Http-session)."`
	SessionHeader    string `setting:"gateway.session.header" placeholder:"NAME" help:"Header that holds the session token of clients without cookies."`
	SessionParameter string `setting:"gateway.session.parameter" name:"session-parameter" placeholder:"NAME" help:"URL parameter that holds the session token of clients without cookies."`

	TrustedProxy []string `setting:"gateway.trusted_proxies.addresses" placeholder:"ADDRESS" help:"Address, or network such as 10.0.0.0/8, of a proxy in front, whose X-Forwarded-* are believed. Once for each."`

	TLSCert []string `setting:"gateway.certificates[].cert" name:"tls-cert" type:"path" placeholder:"PATH" help:"Certificate with its chain, in PEM form; read again when it changes. Clients then use https, also HTTP/2. Once for each."`
	TLSKey  []string `setting:"gateway.certificates[].key" name:"tls-key" type:"path" placeholder:"PATH" help:"Private key of the certificate: of several, in the same order."`

	DialTimeout     string `setting:"gateway.timeouts.dial" placeholder:"TIME" help:"Time to connect to a server (2s)."`
	ResponseTimeout string `setting:"gateway.timeouts.response_header" placeholder:"TIME" help:"Time for a server to begin its answer (60s)."`
	DrainTimeout    string `setting:"gateway.timeouts.drain" placeholder:"TIME" help:"Time for requests to finish at the end (30s)."`
	Admin           string `setting:"admin.listen" placeholder:"ADDR" help:"Loopback address of the admin API, /metrics, /healthz and /readyz, such as 127.0.0.1:9180 (none)."`
	AccessLog       string `setting:"gateway.access_log.path" placeholder:"PATH" help:"File for a line about each request, or - for standard output (none)."`
	AccessLogFormat string `setting:"gateway.access_log.format" placeholder:"FORMAT" help:"Its lines as json or combined (json)."`
	LogFormat       string `setting:"log.format" placeholder:"FORMAT" help:"Log on standard error as text or json (text)."`
}

// lay lays the flags that were given, and those in the environment, over the settings.
func (f *gatewayFlags) lay(s *settings, layers *configfile.Layers, k *kong.Context) error {
	given := make(map[string]bool) // on the command line
	for _, p := range k.Path {
		if p.Flag != nil {
			given[p.Flag.Name] = true
		}
	}
	flags := make(map[string]*kong.Flag) // by setting
	for _, flag := range k.Flags() {
		if setting := flag.Tag.Get("setting"); setting != "" {
			flags[setting] = flag
		}
	}
	var errs []error
	v := reflect.ValueOf(f).Elem()
	for i := range v.NumField() {
		path := v.Type().Field(i).Tag.Get("setting")
		flag := flags[path]
		if v.Field(i).IsZero() || flag == nil {
			continue
		}
		if strings.HasSuffix(path, "[].key") && len(f.TLSCert) > 0 {
			continue // which came with the certificates
		}
		source, name := configfile.Environment, "HOLDFAST_"+strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
		if given[flag.Name] {
			source, name = configfile.Flag, "--"+flag.Name
		}
		list, _, _ := strings.Cut(path, "[]")
		layers.Set(list, source, name)
		var err error
		switch list {
		case "gateway.upstreams":
			s.Gateway.Upstreams = nil
			for _, u := range f.Upstream {
				p := gateway.ParseUpstream(u)
				s.Gateway.Upstreams = append(s.Gateway.Upstreams, upstreamSettings{ID: p.ID, URL: p.URL, Weight: 1})
			}
		case "gateway.certificates":
			if len(f.TLSCert) != len(f.TLSKey) {
				err = errors.New("give both or neither of --tls-cert and --tls-key, and of several as many of one as of the other")
				break
			}
			s.Gateway.Certificates = nil
			for i, cert := range f.TLSCert {
				s.Gateway.Certificates = append(s.Gateway.Certificates, certificateSettings{Cert: cert, Key: f.TLSKey[i]})
			}
		default:
			err = configfile.Assign(s, path, v.Field(i).Interface())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%w: %s: %w", errUsage, name, err))
		}
	}
	return errors.Join(errs...)
}
