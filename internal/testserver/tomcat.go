package testserver

import (
	"os"
	"path/filepath"
	"testing"
)

// TomcatOptions say how [Tomcat] runs.
type TomcatOptions struct {
	// Route is the jvmRoute that this Tomcat appends to its session IDs: JSESSIONID=....Route.
	Route string
	// Pages are the JSP pages of the root application, by file name: "index.jsp".
	Pages map[string]string
}

// Tomcat starts a Tomcat 10 whose root application is the given pages, with sessions in its own memory.
func Tomcat(t testing.TB, o TomcatOptions) *Server {
	t.Helper()
	return start(t, spec{
		program: "catalina.sh",
		debian:  "tomcat10",
		find:    func() []string { return []string{"/usr/share/tomcat10/bin/catalina.sh"} },
		prepare: func(s *Server) error { return prepareTomcat(s, o) },
		args: func(s *Server) []string {
			s.mustWrite("conf/server.xml", `<Server port="-1"><Service name="Catalina">
<Connector address="127.0.0.1" port="`+s.Port()+`" protocol="HTTP/1.1"/>
<Engine name="Catalina" defaultHost="localhost" jvmRoute="`+o.Route+`">
<Host name="localhost" appBase="webapps" autoDeploy="false"/>
</Engine></Service></Server>`)
			return []string{"run"}
		},
		env: func(s *Server) []string {
			// A small heap, and no time spent on optimizing what runs for seconds.
			return []string{"CATALINA_HOME=/usr/share/tomcat10", "CATALINA_BASE=" + s.Dir, "CATALINA_TMPDIR=" + s.Dir,
				"JAVA_OPTS=-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"}
		},
		ready: httpReady,
	}, nil)
}

func prepareTomcat(s *Server, o TomcatOptions) error {
	root := filepath.Join(s.Dir, "webapps", "ROOT")
	for _, dir := range []string{root, filepath.Join(s.Dir, "conf"), filepath.Join(s.Dir, "logs"), filepath.Join(s.Dir, "work")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	// Its default servlets, JSP among them. Jar files need not be searched for tag libraries, which the pages do not use.
	for _, name := range []string{"web.xml", "catalina.properties"} {
		b, err := os.ReadFile(filepath.Join("/etc/tomcat10", name))
		if err == nil {
			if name == "catalina.properties" {
				b = append(b, "\ntomcat.util.scan.StandardJarScanFilter.jarsToSkip=*\n"...)
			}
			err = os.WriteFile(filepath.Join(s.Dir, "conf", name), b, 0o600)
		}
		if err != nil {
			return err
		}
	}
	for name, page := range o.Pages {
		if err := os.WriteFile(filepath.Join(root, name), []byte(page), 0o600); err != nil {
			return err
		}
	}
	return nil
}
