package gateway

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// AdminConfig is who may use an AdminHandler. The zero value serves only clients on the same host.
type AdminConfig struct {
	// Token has to come as Authorization: Bearer TOKEN. Empty: no token is asked for, and only clients on a loopback
	// address or a Unix socket are served.
	Token string
	// Hosts are the host names, without port, under which the handler may be reached, besides localhost, 127.0.0.1 and
	// ::1: a page from elsewhere that gets its name to point here (DNS rebinding) is refused.
	Hosts []string
}

// maxAdminBody bounds the body of a request.
const maxAdminBody = 64 << 10

// AdminHandler returns the admin API, JSON under /v1/; docs/gateway.md describes it. Do not offer it where clients of
// the gateway connect.
func (g *Gateway) AdminHandler(c AdminConfig) http.Handler {
	a := &admin{gateway: g, hosts: append([]string{"localhost", "127.0.0.1", "::1"}, c.Hosts...)}
	if c.Token != "" {
		a.token = sha256.Sum256([]byte(c.Token))
		a.needsToken = true
	}
	for pattern, h := range map[string]func(*http.Request) (any, error){
		"GET /v1/upstreams":                   a.list,
		"GET /v1/upstreams/{id}":              a.get,
		"PUT /v1/upstreams/{id}":              a.put,
		"DELETE /v1/upstreams/{id}":           a.remove,
		"POST /v1/upstreams/{id}/drain":       a.drain,
		"POST /v1/upstreams/{id}/maintenance": a.maintenance,
		"POST /v1/upstreams/{id}/ready":       a.ready,
		"POST /v1/upstreams/{id}/weight":      a.weight,
		"POST /v1/explain":                    a.explain,
		"GET /v1/config":                      a.config,
	} {
		a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := h(r)
			if err != nil {
				a.fail(w, err)
				return
			}
			reply(w, http.StatusOK, v)
		})
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { notFound(w) })
	return a
}

type admin struct {
	gateway    *Gateway
	hosts      []string
	token      [sha256.Size]byte
	needsToken bool
	origins    http.CrossOriginProtection
	mux        http.ServeMux
}

func (a *admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	switch {
	case !slices.ContainsFunc(a.hosts, func(h string) bool { return strings.EqualFold(h, host) }):
		reply(w, http.StatusMisdirectedRequest, problem{"this host name is not one of the admin API's: use localhost, or allow the name in its configuration"})
	case a.origins.Check(r) != nil:
		reply(w, http.StatusForbidden, problem{"requests of pages from elsewhere are refused"})
	case !a.allowed(r):
		notFound(w)
	case (r.Method == http.MethodPost || r.Method == http.MethodPut) && !isJSON(r):
		// What a form can send carries no such type.
		reply(w, http.StatusUnsupportedMediaType, problem{"want Content-Type: application/json"})
	default:
		r.Body = http.MaxBytesReader(w, r.Body, maxAdminBody)
		a.mux.ServeHTTP(w, r)
	}
}

func (a *admin) allowed(r *http.Request) bool {
	if a.needsToken {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		sum := sha256.Sum256([]byte(token))
		return subtle.ConstantTimeCompare(sum[:], a.token[:]) == 1
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr == "" || r.RemoteAddr == "@" // a Unix socket
	}
	return from.Addr().Unmap().IsLoopback()
}

func isJSON(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "application/json"
}

type problem struct {
	Error string `json:"error"`
}

func reply(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client went away
}

// notFound is also the answer to who has no right to know: it is the same for what is there and what is not.
func notFound(w http.ResponseWriter) {
	reply(w, http.StatusNotFound, problem{"there is nothing here, or the token is missing or wrong (Authorization: Bearer TOKEN)"})
}

func (a *admin) fail(w http.ResponseWriter, err error) {
	status := http.StatusBadRequest
	var large *http.MaxBytesError
	switch {
	case errors.Is(err, ErrNoUpstream):
		status = http.StatusNotFound
	case errors.As(err, &large):
		status, err = http.StatusRequestEntityTooLarge, fmt.Errorf("body of more than %d bytes", maxAdminBody)
	}
	reply(w, status, problem{err.Error()})
}

// decode reads the body, which may be missing, into v: one JSON object with known names.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	switch err := d.Decode(v); {
	case err == io.EOF:
		return nil
	case err != nil:
		return fmt.Errorf("body: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("body: more than one JSON value")
	}
	return nil
}

func (a *admin) list(*http.Request) (any, error) {
	return map[string]any{"upstreams": a.gateway.Upstreams()}, nil
}

func (a *admin) get(r *http.Request) (any, error) {
	id := r.PathValue("id")
	for _, u := range a.gateway.Upstreams() {
		if u.ID == id {
			return u, nil
		}
	}
	return nil, fmt.Errorf("%w: %q", ErrNoUpstream, id)
}

func (a *admin) put(r *http.Request) (any, error) {
	var in struct {
		URL         string `json:"url"`
		Resolve     bool   `json:"resolve"`
		Weight      int    `json:"weight"`
		Zone        string `json:"zone"`
		MaxRequests int    `json:"max_requests"`
		Route       string `json:"route"`
	}
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	u := Upstream{
		ID: r.PathValue("id"), URL: in.URL, Resolve: in.Resolve, Weight: in.Weight, Zone: in.Zone, MaxRequests: in.MaxRequests, Route: in.Route,
	}
	if err := a.gateway.SetUpstream(u); err != nil {
		return nil, err
	}
	return a.list(r)
}

func (a *admin) remove(r *http.Request) (any, error) {
	if err := a.gateway.RemoveUpstream(r.PathValue("id")); err != nil {
		return nil, err
	}
	return a.list(r)
}

func (a *admin) drain(r *http.Request) (any, error) {
	var in struct {
		Within string `json:"within"`
	}
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	within, err := time.ParseDuration(in.Within)
	if err != nil {
		return nil, fmt.Errorf(`within %q: want a time such as "30s" or "10m"`, in.Within)
	}
	if err := a.gateway.Drain(r.PathValue("id"), within); err != nil {
		return nil, err
	}
	return a.get(r)
}

func (a *admin) maintenance(r *http.Request) (any, error) {
	return a.simple(r, a.gateway.Maintenance)
}

func (a *admin) ready(r *http.Request) (any, error) { return a.simple(r, a.gateway.Ready) }

func (a *admin) simple(r *http.Request, f func(id string) error) (any, error) {
	if err := decode(r, &struct{}{}); err != nil {
		return nil, err
	}
	if err := f(r.PathValue("id")); err != nil {
		return nil, err
	}
	return a.get(r)
}

func (a *admin) weight(r *http.Request) (any, error) {
	var in struct {
		Weight int `json:"weight"`
	}
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if err := a.gateway.SetWeight(r.PathValue("id"), in.Weight); err != nil {
		return nil, err
	}
	return a.get(r)
}

func (a *admin) explain(r *http.Request) (any, error) {
	var in struct {
		Cookie string            `json:"cookie"`
		IP     string            `json:"ip"`
		Path   string            `json:"path"`
		Host   string            `json:"host"`
		Header map[string]string `json:"header"`
		TLS    bool              `json:"tls"`
	}
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	q := Query{Cookie: in.Cookie, IP: in.IP, Path: in.Path, Host: in.Host, TLS: in.TLS, Header: make(http.Header)}
	for name, value := range in.Header {
		q.Header.Set(name, value)
	}
	said, err := a.gateway.Explain(q)
	if err != nil {
		return nil, err
	}
	return map[string]any{"steps": said}, nil
}

// config shows what decides where requests go; never a key.
func (a *admin) config(*http.Request) (any, error) {
	c := a.gateway.table.Load().config
	check := "none"
	switch h := c.HealthCheck; {
	case h.TCP:
		check = "TCP every " + h.Interval.String()
	case h.Path != "":
		check = "GET " + h.Path + " every " + h.Interval.String()
	}
	return struct {
		Affinity              Affinity `json:"affinity"`
		Balance               Balance  `json:"balance"`
		Zone                  string   `json:"zone,omitempty"`
		LoadFactor            float64  `json:"load_factor"`
		SlowStart             string   `json:"slow_start"`
		PanicThreshold        float64  `json:"panic_threshold"`
		HealthCheck           string   `json:"health_check"`
		Ejection              bool     `json:"ejection"`
		MaxQueued             int      `json:"max_queued"`
		QueueTimeout          string   `json:"queue_timeout"`
		DialTimeout           string   `json:"dial_timeout"`
		ResponseHeaderTimeout string   `json:"response_header_timeout"`
		BodyIdleTimeout       string   `json:"body_idle_timeout"`
		DrainTimeout          string   `json:"drain_timeout"`
		ResolveEvery          string   `json:"resolve_every"`
		Upstreams             int      `json:"upstreams"`
	}{
		c.Affinity, c.Balance, c.Zone, c.LoadFactor, c.SlowStart.String(), c.PanicThreshold, check, !c.Ejection.Disable,
		max(c.MaxQueued, 0), c.QueueTimeout.String(), c.DialTimeout.String(), c.ResponseHeaderTimeout.String(),
		c.BodyIdleTimeout.String(), c.DrainTimeout.String(), c.ResolveEvery.String(), len(c.Upstreams),
	}, nil
}
